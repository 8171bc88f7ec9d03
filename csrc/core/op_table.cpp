#include "op_table.h"

namespace quantune {
namespace {

struct Builder {
  OpInfo info;
  constexpr Builder(const char* name, size_t offset) : info{name, offset, 0, {}, {}} {}
  constexpr Builder add(OperandKind kind, const char* name) const {
    Builder next = *this;
    next.info.kinds[next.info.operands] = kind;
    next.info.names[next.info.operands] = name;
    next.info.operands++;
    return next;
  }
};

}  // namespace

const OpInfo op_table[kOps] = {
#define OP(name) Builder(#name, offsetof(qt_backend, name))
#define OUT(field) .add(kOut, #field)
#define INOUT(field) .add(kInout, #field)
#define IN(field) .add(kIn, #field)
#define OUT_OPT(field) .add(kOutOpt, #field)
#define INOUT_OPT(field) .add(kInoutOpt, #field)
#define IN_OPT(field) .add(kInOpt, #field)
#define OUT_LIST(field) .add(kOutList, #field)
#define INOUT_LIST(field) .add(kInoutList, #field)
#define IN_LIST(field) .add(kInList, #field)
#define F64(field) .add(kF64, #field)
#define I64(field) .add(kI64, #field)
#define END .info,
#include "ops.def"
#include "ops_undef.h"
};

const char* operand_kind_name(OperandKind kind) {
  static const char* const names[] = {"out", "inout", "in", "out?", "inout?", "in?", "out[]", "inout[]", "in[]", "f64", "i64"};
  return names[kind];
}

}  // namespace quantune
