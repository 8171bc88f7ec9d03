// Chooses the kernel of a product.
#include "gemm.cuh"
#include "gemm_kernels.cuh"

namespace quantune::cuda {

qt_status gemm(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c) {
  if (m <= 0 || n <= 0) return QT_OK;
  if (is_few(m, products[0])) return gemm_few(stream, m, n, products, count, c);
  if (products[0].a.dtype == QT_BFLOAT16) return gemm_mma(stream, m, n, products, count, c);
  return gemm_float32(stream, m, n, products, count, c);
}

}  // namespace quantune::cuda
