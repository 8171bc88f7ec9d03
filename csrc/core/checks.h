#pragma once
#include <string>

#include "abi.h"

namespace quantune {

// Checks dtypes, shapes, presence and aliasing of an operation's operands, the same for every backend. `args` is its argument
// struct. False: `message` says what is wrong, with both sides.
bool check_op(int op, const void* args, std::string* message);

}  // namespace quantune
