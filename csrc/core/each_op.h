// Expands OP(name), which the includer defines, for each operation of ops.def, in order. The order of the includes matters.
// clang-format off
#include "ops_no_fields.h"
#include "ops.def"
#include "ops_undef.h"
// clang-format on
