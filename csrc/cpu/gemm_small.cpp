#include "gemm.h"

namespace quantune::cpu::QT_CPU_VARIANT {

bool is_small(int64_t, int64_t, const Product*, int) { return false; }
qt_status gemm_small(qt_stream* stream, int64_t, int64_t, const Product*, int, const Result&) {
  return stream->host->fail(stream, QT_INTERNAL, "unreachable");
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
