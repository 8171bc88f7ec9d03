// One check per operation: dtypes, shapes and presence, as the comments of ops.def state them.
#pragma once
#include "check.h"

namespace quantune {

#define OP(name) void check_operands(Check& c, const qt_##name##_args& a);
#include "each_op.h"

}  // namespace quantune
