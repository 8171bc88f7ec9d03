// The variant avx512bf16: avx512 with other matrix products.
#include "kernels.h"

namespace quantune::cpu {

namespace avx512 {
void fill_table(qt_backend* backend);
}

namespace avx512bf16 {

void fill_table(qt_backend* backend) {
  avx512::fill_table(backend);
  backend->matmul = matmul;
  backend->linear = linear;
  backend->linear_backward = linear_backward;
  backend->linear_cross_entropy = linear_cross_entropy;
}

}  // namespace avx512bf16
}  // namespace quantune::cpu
