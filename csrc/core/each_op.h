// Expands OP(name), which the includer defines, for each operation of ops.def, in order.
// clang-format off: the order of the includes is the point
#include "ops_no_fields.h"
#include "ops.def"
#include "ops_undef.h"
// clang-format on
