// The entry, and what holds for every operation: outputs do not overlap what they must not. The checks of one operation each
// are in op_checks_basic.cpp and op_checks_models.cpp.
#include "op_checks.h"

#include "checks.h"
#include "dtype.h"
#include "op_table.h"

namespace quantune {
namespace {

int64_t bytes_of(const qt_tensor* tensor) {
  return tensor->quant ? tensor->quant->bytes : tensor->elements * dtype_bytes(tensor->dtype);
}

bool overlap(const qt_tensor* a, const qt_tensor* b) {
  auto begin = [](const qt_tensor* t) { return static_cast<const char*>(t->data); };
  return begin(a) < begin(b) + bytes_of(b) && begin(b) < begin(a) + bytes_of(a);
}

// Element-wise operations may write where they read, element for element.
bool may_be_in_place(int op) {
  switch (op) {
    case OP_add:
    case OP_scale:
    case OP_rope:
    case OP_swiglu:
    case OP_swiglu_backward:
    case OP_activation:
    case OP_activation_backward:
    case OP_dropout:
    case OP_log_softmax:
    case OP_linear_backward:  // a frozen layer without adapter reads the shape of x alone, which may be dx
      return true;
    default:
      return false;
  }
}

bool check_aliasing(int op, const uint64_t* slots, std::string* message) {
  const OpInfo& info = op_table[op];
  auto tensor_at = [&](int i) -> const qt_tensor* {
    return is_scalar(info.kinds[i]) || is_list(info.kinds[i]) ? nullptr : reinterpret_cast<const qt_tensor*>(slots[i]);
  };
  for (int i = 0; i < info.operands; i++) {
    const qt_tensor* out = tensor_at(i);
    if (!out || !is_written(info.kinds[i])) continue;
    for (int j = 0; j < info.operands; j++) {
      const qt_tensor* other = tensor_at(j);
      if (!other || j == i || !overlap(out, other)) continue;
      bool exact = out->data == other->data && bytes_of(out) == bytes_of(other) && !is_written(info.kinds[j]);
      if (exact && may_be_in_place(op)) continue;
      *message = std::string(info.names[i]) + " " + shape_text(out) + " and " + info.names[j] + " " + shape_text(other) +
                 " share memory, which the operation does not allow";
      return false;
    }
  }
  return true;
}

}  // namespace

bool check_op(int op, const void* args, std::string* message) {
  Check check(message);
  switch (op) {
#define OP(name)                                                        \
  case OP_##name:                                                       \
    check_operands(check, *static_cast<const qt_##name##_args*>(args)); \
    break;
#include "each_op.h"
  }
  return check.ok() && check_aliasing(op, static_cast<const uint64_t*>(args), message);
}

}  // namespace quantune
