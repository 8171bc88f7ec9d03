// Fills the operations of the backend table with this variant's kernels.
#include "kernels.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// Until every family exists: what is missing says so when it is called.
#define OP(op)                                                                                        \
  __attribute__((weak)) qt_status op(qt_stream* stream, const qt_##op##_args*) {                      \
    return stream->host->fail(stream, QT_UNSUPPORTED, "the operation is not part of this build yet"); \
  }
#include "../core/each_op.h"
__attribute__((weak)) int64_t attention_plan_size(int64_t, int64_t) { return 0; }

void fill_table(qt_backend* backend) {
#define OP(op) backend->op = op;
#include "../core/each_op.h"
  backend->attention_plan_size = attention_plan_size;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
