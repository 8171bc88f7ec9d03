// The microkernel: a tile of C, up to tile_rows x tile_columns, in registers; one panel of A, one of B.
#pragma once
#include "gemm.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// As many accumulators as the registers hold beside one row of B and a broadcast: 24 of 32 (AVX-512), 12 of 16 (AVX2).
#if defined(QT_CPU_AVX512)
constexpr int tile_rows = 12, tile_vecs = 2;
#elif defined(QT_CPU_AVX2)
constexpr int tile_rows = 6, tile_vecs = 2;
#else
constexpr int tile_rows = 4, tile_vecs = 1;
#endif
constexpr int tile_columns = tile_vecs * Vec::width;

// c [rows, columns <= tile_columns] (+)= a b (+ bias). a: [k][rows]; b: [k] rows of tile_columns floats, b_stride apart.
struct TileTarget {
  float* c;
  int64_t stride;
  int columns;
  bool add;           // to what c holds, else overwrite
  const float* bias;  // [columns], null with add
};

template <int Rows>
void multiply_tile(int64_t k, const float* a, const float* b, int64_t b_stride, const TileTarget& t) {
  Vec sum[Rows][tile_vecs];
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < tile_vecs; v++) sum[r][v] = Vec::zero();
  for (; k > 0; k--, a += Rows, b += b_stride) {
    Vec row[tile_vecs];
    for (int v = 0; v < tile_vecs; v++) row[v] = Vec::load(b + v * Vec::width);
    for (int r = 0; r < Rows; r++) {
      const Vec x = Vec::broadcast(a[r]);
      for (int v = 0; v < tile_vecs; v++) sum[r][v] = fma(x, row[v], sum[r][v]);
    }
  }
  for (int v = 0; v < tile_vecs; v++) {
    const int count = t.columns - v * Vec::width;
    if (count <= 0) break;
    float* c = t.c + v * Vec::width;
    const float* bias = t.bias ? t.bias + v * Vec::width : nullptr;
    if (count >= Vec::width) {
      for (int r = 0; r < Rows; r++, c += t.stride) {
        if (t.add) sum[r][v] = sum[r][v] + Vec::load(c);
        if (bias) sum[r][v] = sum[r][v] + Vec::load(bias);
        sum[r][v].store(c);
      }
    } else {
      for (int r = 0; r < Rows; r++, c += t.stride) {
        if (t.add) sum[r][v] = sum[r][v] + Vec::load_partial(c, count);
        if (bias) sum[r][v] = sum[r][v] + Vec::load_partial(bias, count);
        sum[r][v].store_partial(c, count);
      }
    }
  }
}

using TileKernel = void (*)(int64_t k, const float* a, const float* b, int64_t b_stride, const TileTarget& t);
constexpr TileKernel tile_kernels[] = {
    nullptr,          multiply_tile<1>, multiply_tile<2>, multiply_tile<3>,  multiply_tile<4>,
#if defined(QT_CPU_AVX2) || defined(QT_CPU_AVX512)
    multiply_tile<5>, multiply_tile<6>,
#endif
#if defined(QT_CPU_AVX512)
    multiply_tile<7>, multiply_tile<8>, multiply_tile<9>, multiply_tile<10>, multiply_tile<11>, multiply_tile<12>,
#endif
};

}  // namespace quantune::cpu::QT_CPU_VARIANT
