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

qt_status gemm_adapted(qt_stream* stream, int64_t m, int64_t n, const Product& product, const Adapter& adapter,
                       const Result& c) {
  if (m <= 0 || n <= 0) return QT_OK;
  if (!is_few(m, product) && mma_takes_adapter(stream, m, n, product, adapter))
    return gemm_mma_adapted(stream, m, n, product, adapter, c);
  const Product down = {product.a, adapter.down, product.k, product.scale};
  if (qt_status status = gemm(stream, m, adapter.rank, &down, 1, adapter.inner)) return status;
  const Factor inner = row_factor(adapter.inner.data, adapter.inner.dtype, adapter.inner.row_stride);
  const Product products[2] = {product, {inner, adapter.up, adapter.rank, adapter.scale}};
  return gemm(stream, m, n, products, 2, c);
}

}  // namespace quantune::cuda
