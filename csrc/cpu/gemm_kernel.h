// The microkernel: a tile of C, up to tile_rows x tile_columns, in registers; one panel of A, one of B. Panels hold floats, or
// pairs of bfloat16 that follow one another along k.
#pragma once
#include "gemm.h"
#include "simd/pairs.h"
#include "simd/prefetch.h"

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

// What a panel's words are: the register that holds sixteen of them, how many elements of k one holds, and the longest run of k
// (elements) that a block of A and the panels of B are packed for.
template <class Word>
struct Panel;
template <>
struct Panel<float> {
  using Register = Vec;
#if defined(QT_CPU_AVX512)
  static constexpr int64_t elements = 1, max_depth = 768;
#else
  static constexpr int64_t elements = 1, max_depth = 384;
#endif
};
inline Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }

#if defined(QT_PAIRS)
// A step over a pair of k is 2 loads, 12 broadcasts and 24 vdpbf16ps that do not wait for one another, in 26 registers: 1,536
// flop. Where one vdpbf16ps starts every cycle (Zen 4) the rest fits beside them: 64 flop a cycle, 225 GFLOP/s a core at 3.5
// GHz, twice float32. Intel's cores start one every other cycle: there the tile runs at 87 GFLOP/s of 87 (2.7 GHz), half of its
// float32.
template <>
struct Panel<Pair> {
  using Register = Pairs;
  static constexpr int64_t elements = 2, max_depth = 1024;
};
inline Vec multiply_add(Pairs a, Pairs b, Vec c) { return dot(a, b, c); }
#endif

// c [rows, columns <= tile_columns] (+)= a b (+ bias). a: [k][rows]; b: [k] rows of tile_columns words, b_stride apart; k in
// words.
struct TileTarget {
  float* c;
  int64_t stride;
  int columns;
  bool add;           // to what c holds, else overwrite
  const float* bias;  // [columns], null with add
};

// Panels come from the second-level cache faster when they are asked for ahead of the hardware's own prefetching, and so does
// C, which is written at the end.
constexpr int rows_ahead = 8;

template <int Rows, class Word>
void multiply_tile(int64_t k, const Word* a, const Word* b, int64_t b_stride, const TileTarget& t) {
  using Register = typename Panel<Word>::Register;
  Vec sum[Rows][tile_vecs];
  for (int r = 0; r < Rows; r++) {
    for (int v = 0; v < tile_vecs; v++) sum[r][v] = Vec::zero();
    for (int j = 0; j < tile_columns; j += cache_line) prefetch_to_write(t.c + r * t.stride + j);
  }
  for (; k > 0; k--, a += Rows, b += b_stride) {
    Register row[tile_vecs];
    for (int v = 0; v < tile_vecs; v++) row[v] = Register::load(b + v * Vec::width);
    for (int j = 0; j < tile_columns; j += cache_line) prefetch(b + rows_ahead * b_stride + j);
    prefetch(a + 2 * rows_ahead * Rows);
    for (int r = 0; r < Rows; r++) {
      const Register x = Register::broadcast(a[r]);
      for (int v = 0; v < tile_vecs; v++) sum[r][v] = multiply_add(x, row[v], sum[r][v]);
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

template <class Word>
using TileKernel = void (*)(int64_t k, const Word* a, const Word* b, int64_t b_stride, const TileTarget& t);
template <class Word>
constexpr TileKernel<Word> tile_kernels[] = {
    nullptr,
    multiply_tile<1, Word>,
    multiply_tile<2, Word>,
    multiply_tile<3, Word>,
    multiply_tile<4, Word>,
#if defined(QT_CPU_AVX2) || defined(QT_CPU_AVX512)
    multiply_tile<5, Word>,
    multiply_tile<6, Word>,
#endif
#if defined(QT_CPU_AVX512)
    multiply_tile<7, Word>,
    multiply_tile<8, Word>,
    multiply_tile<9, Word>,
    multiply_tile<10, Word>,
    multiply_tile<11, Word>,
    multiply_tile<12, Word>,
#endif
};

}  // namespace quantune::cpu::QT_CPU_VARIANT
