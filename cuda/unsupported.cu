// Stands in for operations that no other file defines yet: weak, so that a family's own definition wins at link time.
#include "kernels.h"

namespace quantune::cuda {

#define OP(name)                                                                             \
  __attribute__((weak)) qt_status name(qt_stream* stream, const qt_##name##_args*) {         \
    return stream->fail(QT_UNSUPPORTED, "the CUDA backend has no kernel for " #name " yet"); \
  }
#include "../csrc/core/each_op.h"

__attribute__((weak)) int64_t attention_plan_size(int64_t, int64_t) { return 1; }

}  // namespace quantune::cuda
