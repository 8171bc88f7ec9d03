// c (+)= alpha op(a) op(b), op transposing or not. The core has checked the shapes.
#include "gemm.h"

namespace quantune::cpu::QT_CPU_VARIANT {

qt_status matmul(qt_stream* stream, const qt_matmul_args* args) {
  const qt_tensor *a = args->a, *b = args->b;
  const float alpha = static_cast<float>(args->alpha);
  const Product product = {args->transpose_a ? columns_of(a) : rows_of(a), args->transpose_b ? rows_of(b) : columns_of(b),
                           args->transpose_a ? row_count(a) : column_count(a), alpha};
  // Nothing but bfloat16 is rounded to it: operands that differ, or that alpha moves off its values, are multiplied as float32.
  const bool exact = a->dtype == QT_BFLOAT16 && b->dtype == QT_BFLOAT16 && alpha == 1.0f;
  return gemm(stream, row_count(args->c), column_count(args->c), &product, 1, result_of(args->c, args->accumulate != 0),
              exact ? QT_BFLOAT16 : QT_FLOAT32);
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
