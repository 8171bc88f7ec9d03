// Tiles of bfloat16 factors in shared memory for mma.sync: how they get there (cp.async), where their 16-byte chunks lie (so
// that neither copies nor ldmatrix conflict in banks), and how a warp takes fragments from them.
//
// A factor lies in memory either along k (rows are outer indices) or across (rows are indices of k). A tile keeps that form.
#pragma once
#include "device/async.h"
#include "device/mma.h"
#include "device/types.h"

namespace quantune::cuda {

constexpr int kStepDepth = 64;  // of k, a step of the main loop

// A bfloat16 factor that the tile loads can read: 16-byte aligned rows, `stride` elements apart, a multiple of 8; `outers` and
// the product's k are what there is, and the one that runs along a row is a multiple of 8 too.
struct DenseFactor {
  const bf16* data;
  int64_t stride;
};

// A tile of `outers` x kStepDepth, rows of `kChunks` chunks of eight elements.
template <int outers, bool across>
struct TileShape {
  static constexpr int kRows = across ? kStepDepth : outers, kChunks = (across ? outers : kStepDepth) / 8;
  static constexpr int kElements = outers * kStepDepth;
  // Eight rows at one chunk lie in eight different sets of four banks.
  __device__ static int chunk_at(int row, int chunk) {
    if constexpr (kChunks >= 8)
      return row * kChunks + (chunk ^ (row & 7));
    else
      return row * kChunks + (chunk ^ (row / (8 / kChunks) & (kChunks - 1)));
  }
};

// Starts the copy of the tile at (outer, k); what lies beyond `outers` or `ks` becomes zero.
template <int tile_outers, bool across, int threads>
__device__ inline void copy_tile(bf16* tile, const DenseFactor& f, int64_t outer, int64_t outers, int64_t k, int64_t ks) {
  using Shape = TileShape<tile_outers, across>;
  constexpr int kCopies = Shape::kRows * Shape::kChunks / threads, kRowStep = threads / Shape::kChunks;
  static_assert(kCopies * threads == Shape::kRows * Shape::kChunks && kRowStep > 0, "whole rows of copies");
  const int row = static_cast<int>(threadIdx.x) / Shape::kChunks, chunk = static_cast<int>(threadIdx.x) % Shape::kChunks;
  const int64_t first_row = across ? k : outer, first_column = (across ? outer : k) + chunk * 8;
  const int64_t rows = (across ? ks : outers) - first_row, columns = across ? outers : ks;
  const bool inside = first_column < columns;
  const bf16* from = f.data + (first_row + row) * f.stride + first_column;
#pragma unroll
  for (int i = 0; i < kCopies; i++) {
    const int at = row + i * kRowStep;
    const bool valid = inside && at < rows;
    copy_async_16(tile + Shape::chunk_at(at, chunk) * 8, valid ? from : f.data, valid);
    from += kRowStep * f.stride;
  }
}

// A [16, 16] at (row m, k) of a tile.
template <int tile_outers, bool across>
__device__ inline void load_a(uint32_t (&a)[4], const bf16* tile, int m, int k) {
  using Shape = TileShape<tile_outers, across>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if constexpr (across)
    ldmatrix_x4_trans(a, tile + Shape::chunk_at(k + (lane & 7) + (lane >> 4) * 8, m / 8 + (lane >> 3 & 1)) * 8);
  else
    ldmatrix_x4(a, tile + Shape::chunk_at(m + (lane & 15), k / 8 + (lane >> 4)) * 8);
}

// Two neighbouring B [16, 8], at columns n and n + 8.
template <int tile_outers, bool across>
__device__ inline void load_b(uint32_t (&b)[4], const bf16* tile, int n, int k) {
  using Shape = TileShape<tile_outers, across>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if constexpr (across)
    ldmatrix_x4_trans(b, tile + Shape::chunk_at(k + (lane & 15), n / 8 + (lane >> 4)) * 8);
  else
    ldmatrix_x4(b, tile + Shape::chunk_at(n + (lane & 7) + (lane >> 4) * 8, k / 8 + (lane >> 3 & 1)) * 8);
}

// What a warp of a tile product keeps: sums of [rows, columns] and the fragments of two neighbouring k.
template <int rows, int columns>
struct WarpProduct {
  static constexpr int kRowTiles = rows / 16, kColumnTiles = columns / 8;
  float sums[kRowTiles][kColumnTiles][4];
  uint32_t a[2][kRowTiles][4], b[2][kColumnTiles / 2][4];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++)
#pragma unroll
      for (int j = 0; j < kColumnTiles; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
  }
  template <int a_outers, bool a_across, int b_outers, bool b_across>
  __device__ void load(int slot, const bf16* tile_a, const bf16* tile_b, int m, int n, int k) {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++) load_a<a_outers, a_across>(a[slot], i, tile_a, m, k);
#pragma unroll
    for (int j = 0; j < kColumnTiles / 2; j++) load_b<b_outers, b_across>(b[slot][j], tile_b, n + j * 16, k);
  }
  template <int a_outers, bool a_across>
  __device__ static void load_a(uint32_t (&to)[kRowTiles][4], int i, const bf16* tile, int m, int k) {
    cuda::load_a<a_outers, a_across>(to[i], tile, m + i * 16, k);
  }
  __device__ void multiply(int slot) {
#pragma unroll
    for (int i = 0; i < kRowTiles; i++)
#pragma unroll
      for (int j = 0; j < kColumnTiles; j++) {
        const uint32_t right[2] = {b[slot][j / 2][j % 2 * 2], b[slot][j / 2][j % 2 * 2 + 1]};
        mma_bf16(sums[i][j], a[slot][i], right);
      }
  }
};

}  // namespace quantune::cuda
