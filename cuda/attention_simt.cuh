// What the SIMT forms of attention share (float32, and bfloat16 whose rows can't be copied in 16 bytes): tiles of 64 rows by 64
// columns in shared memory, and their product in registers, 4 x 4 of a tile by each of 256 threads. Head sizes pass by in
// chunks of 64 columns, so that every size works with the same shared memory.
#pragma once
#include "attention_plan.cuh"
#include "device/shared.h"
#include "device/warp.h"

namespace quantune::cuda::simt {

constexpr int kTile = 64, kPitch = kTile + 4;  // floats; the pitch keeps float4 aligned and spreads columns over the banks
constexpr int kThreads = 256, kSide = 4;       // thread 16 y + x owns rows 4y.. and columns 4x.. of a tile

// One operand [rows, heads, size] at one head: its rows lie `stride` elements apart.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  int rows;
};
template <class T>
__device__ Operand<T> head_of(const T* x, int rows, int heads, int head, int size) {
  return {x + static_cast<int64_t>(head) * size, static_cast<int64_t>(heads) * size, rows};
}

// Columns [column, column + 64) of the rows [row, row + 64): as [row][column], or transposed as [column][row]. What lies
// outside of the operand is 0. Lanes read neighbouring columns.
template <bool transposed, class T>
__device__ void load_tile(float* to, const Operand<T>& x, int row, int column, int size) {
  constexpr int kStep = kThreads / kTile;
  const int c = static_cast<int>(threadIdx.x) % kTile, r = static_cast<int>(threadIdx.x) / kTile;
  const T* from = x.data + (row + r) * x.stride + column + c;
  const int rows = column + c < size ? x.rows - row - r : 0;
  to += transposed ? c * kPitch + r : r * kPitch + c;
#pragma unroll 8
  for (int i = 0; i < kTile; i += kStep) {
    *to = i < rows ? to_float(*from) : 0.0f;
    from += kStep * x.stride;
    to += kStep * (transposed ? 1 : kPitch);
  }
}

struct Accumulator {
  float v[kSide][kSide];
  __device__ void clear() {
    for (auto& row : v)
      for (float& x : row) x = 0;
  }
};

// sum[i][j] += sum over k < depth of a[k][4y + i] b[k][4x + j]. Bound by shared memory: 32 bytes for 16 products a thread.
__device__ inline void multiply(Accumulator& sum, const float* a, const float* b, int depth) {
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 4
  for (int k = 0; k < depth; k++) {
    const Pack<float, 4> p = load_pack<4>(a + k * kPitch + kSide * y), q = load_pack<4>(b + k * kPitch + kSide * x);
#pragma unroll
    for (int i = 0; i < kSide; i++) {
#pragma unroll
      for (int j = 0; j < kSide; j++) sum.v[i][j] = fmaf(p[i], q[j], sum.v[i][j]);
    }
  }
}

// The tile of the thread, transposed: to[column][row].
__device__ inline void store_transposed(float* to, const Accumulator& x) {
  const int column = kSide * (static_cast<int>(threadIdx.x) % 16), row = kSide * (static_cast<int>(threadIdx.x) / 16);
#pragma unroll
  for (int j = 0; j < kSide; j++) {
    store_pack<4>(to + (column + j) * kPitch + row, Pack<float, 4>{{x.v[0][j], x.v[1][j], x.v[2][j], x.v[3][j]}});
  }
}

// a[rows, size] b[columns, size]ᵀ over all chunks of the head size; `left` and `right` are scratch tiles. Every thread of the
// block calls it; the tiles may be written again after the next barrier.
template <class T>
__device__ void multiply_heads(Accumulator& sum, const Operand<T>& a, int row, const Operand<T>& b, int column, int size,
                               float* left, float* right) {
  sum.clear();
  for (int d = 0; d < size; d += kTile) {
    __syncthreads();
    load_tile<true>(left, a, row, d, size);
    load_tile<true>(right, b, column, d, size);
    __syncthreads();
    multiply(sum, left, right, size - d < kTile ? size - d : kTile);
  }
}

}  // namespace quantune::cuda::simt
