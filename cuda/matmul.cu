// c (+)= alpha op(a) op(b), op transposing or not. The core has checked the shapes.
#include "gemm.cuh"
#include "kernels.h"

namespace quantune::cuda {

qt_status matmul(qt_stream* stream, const qt_matmul_args* args) {
  const qt_tensor *a = args->a, *b = args->b;
  const Product product = {args->transpose_a ? column_factor(a) : row_factor(a),
                           args->transpose_b ? row_factor(b) : column_factor(b), args->transpose_a ? rows_of(a) : last_of(a),
                           static_cast<float>(args->alpha)};
  return gemm(stream, rows_of(args->c), last_of(args->c), &product, 1, result_of(args->c, args->accumulate != 0));
}

}  // namespace quantune::cuda
