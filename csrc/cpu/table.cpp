// Fills the operations of the backend table with this variant's kernels.
#include "kernels.h"

namespace quantune::cpu::QT_CPU_VARIANT {

void fill_table(qt_backend* backend) {
#define OP(op) backend->op = op;
#include "../core/each_op.h"
  backend->attention_plan_size = attention_plan_size;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
