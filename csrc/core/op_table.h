// The operations of ops.def as data: what the queue decodes records by and what the addon exports.
#pragma once
#include <cstddef>
#include <cstdint>

#include "abi.h"

namespace quantune {

enum OperandKind : uint8_t {
  kOut,
  kInout,
  kIn,
  kOutOpt,
  kInoutOpt,
  kInOpt,
  kOutList,
  kInoutList,
  kInList,
  kF64,
  kI64,
};

inline bool is_scalar(OperandKind kind) { return kind >= kF64; }
inline bool is_list(OperandKind kind) { return kind >= kOutList && kind <= kInList; }
inline bool is_optional(OperandKind kind) { return kind >= kOutOpt && kind <= kInOpt; }
inline bool is_read(OperandKind kind) { return kind != kOut && kind != kOutOpt && kind != kOutList; }
inline bool is_written(OperandKind kind) { return kind != kIn && kind != kInOpt && kind != kInList; }
inline bool is_overwritten(OperandKind kind) { return kind == kOut || kind == kOutOpt || kind == kOutList; }
const char* operand_kind_name(OperandKind kind);

constexpr int kMostOperands = 24;

struct OpInfo {
  const char* name;
  size_t backend_offset;  // of the function in qt_backend
  int operands;
  OperandKind kinds[kMostOperands];
  const char* names[kMostOperands];
};

enum OpIndex : int {
#define OP(name) OP_##name,
#include "each_op.h"
  kOps
};

extern const OpInfo op_table[kOps];

using OpFunction = qt_status (*)(qt_stream*, const void*);
inline OpFunction op_function(const qt_backend* backend, int op) {
  return *reinterpret_cast<const OpFunction*>(reinterpret_cast<const char*>(backend) + op_table[op].backend_offset);
}

}  // namespace quantune
