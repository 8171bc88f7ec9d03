// c (+)= alpha op(a) op(b), op transposing or not.
#include "gemm.h"

namespace quantune::cpu::QT_CPU_VARIANT {

qt_status matmul(qt_stream* stream, const qt_matmul_args* args) {
  const qt_tensor *a = args->a, *b = args->b, *c = args->c;
  const int64_t m = row_count(c), n = column_count(c);
  const int64_t k = args->transpose_a ? row_count(a) : column_count(a);
  const int64_t k_of_b = args->transpose_b ? column_count(b) : row_count(b);
  if ((args->transpose_a ? column_count(a) : row_count(a)) != m || (args->transpose_b ? row_count(b) : column_count(b)) != n ||
      k != k_of_b)
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "matmul: shapes do not fit: m %lld, n %lld, k %lld and %lld",
                              static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
                              static_cast<long long>(k_of_b));
  const Product product = {args->transpose_a ? columns_of(a) : rows_of(a), args->transpose_b ? rows_of(b) : columns_of(b), k,
                           static_cast<float>(args->alpha)};
  return gemm(stream, m, n, &product, 1, result_of(c, args->accumulate != 0));
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
