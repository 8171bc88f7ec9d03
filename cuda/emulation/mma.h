// ldmatrix and mma.sync under emulation.
#pragma once
#include <cstdint>

#include "async.h"
#include "engine.h"

namespace quantune::cuda {
namespace emulation {

void load_matrices(const void* row, uint32_t* registers, int matrices, bool transposed);
enum class Operand : int { kBf16, kFp16, kInt8 };
struct ProductOperands {
  void* d;
  const uint32_t *a, *b;
};
void warp_product(ProductOperands operands, Operand type);

}  // namespace emulation

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { emulation::load_matrices(row, r, 4, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { emulation::load_matrices(row, r, 4, true); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { emulation::load_matrices(row, r, 2, false); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) { emulation::load_matrices(row, r, 2, true); }
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::warp_product({d, a, b}, emulation::Operand::kBf16);
}
inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::warp_product({d, a, b}, emulation::Operand::kFp16);
}
inline void mma_int8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::warp_product({d, a, b}, emulation::Operand::kInt8);
}

}  // namespace quantune::cuda
