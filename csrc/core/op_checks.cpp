#include "checks.h"
namespace quantune {
bool check_op(int, const void*, std::string*) { return true; }
}  // namespace quantune
