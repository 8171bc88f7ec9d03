// c (+)= alpha op(a) op(b), op transposing or not. The core has checked the shapes.
#include "gemm.cuh"
#include "kernels.h"

namespace quantune::cuda {

qt_status matmul(qt_stream* stream, const qt_matmul_args* args) {
  const qt_tensor *a = args->a, *b = args->b;
  const Product product = {args->transpose_a ? column_factor(a) : row_factor(a),
                           args->transpose_b ? row_factor(b) : column_factor(b), args->transpose_a ? rows_of(a) : last_of(a),
                           static_cast<float>(args->alpha)};
  const Result c = result_of(args->c, args->accumulate != 0);
  // Nothing but bfloat16 is rounded to it: where only a is, the product is that of float32 numbers.
  const bool widened = a->dtype == QT_BFLOAT16 && b->dtype != QT_BFLOAT16;
  return widened ? gemm_float32(stream, rows_of(args->c), last_of(args->c), &product, 1, c)
                 : gemm(stream, rows_of(args->c), last_of(args->c), &product, 1, c);
}

}  // namespace quantune::cuda
