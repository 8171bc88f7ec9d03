// What the tensor core forms of attention share: bfloat16 tiles in shared memory and a warp's products of 16-row strips of
// them.
//
// A tile's rows are padded by 8 elements: an odd number of 16-byte pieces a row (every head size here is a multiple of 16), so
// that the eight rows of an 8 x 8 matrix lie in different banks and ldmatrix has no conflicts.
#pragma once
#include "attention_plan.cuh"
#include "device/async.h"
#include "device/math.h"
#include "device/mma.h"
#include "device/shared.h"
#include "device/warp.h"

namespace quantune::cuda::mma {

template <int D>
constexpr int kPitch = D + 8;

// One operand [rows, heads, size] at one head: rows `stride` elements apart, 16-byte aligned, size a multiple of 8.
struct Operand {
  const bf16* data;
  int64_t stride;
  int rows;
};
__device__ inline Operand head_of(const bf16* x, int rows, int heads, int head, int size) {
  return {x + static_cast<int64_t>(head) * size, static_cast<int64_t>(heads) * size, rows};
}

// Queues the copy of rows [first, first + count) into a tile [count, kPitch]. What lies outside of the operand, columns from
// `size` to D included, becomes 0.
template <int D, int count, int threads>
__device__ void copy_tile(bf16* to, const Operand& x, int first, int size) {
  constexpr int kPieces = D / 8, kAll = count * kPieces, kRowStep = threads / kPieces;
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (threads % kPieces == 0) {  // a thread stays in its columns
    const int row = thread / kPieces, column = thread % kPieces * 8, rows = column < size ? x.rows - first - row : 0;
    const bf16* from = x.data + (first + row) * x.stride + column;
    to += row * kPitch<D> + column;
#pragma unroll
    for (int i = 0; i < count; i += kRowStep) {
      copy_async_16(to + i * kPitch<D>, i < rows ? from : x.data, i < rows);
      from += kRowStep * x.stride;
    }
  } else {
#pragma unroll 4
    for (int at = thread; at < kAll; at += threads) {
      const int row = at / kPieces, column = at % kPieces * 8;
      const bool valid = first + row < x.rows && column < size;
      copy_async_16(to + row * kPitch<D> + column, valid ? x.data + (first + row) * x.stride + column : x.data, valid);
    }
  }
}

// sum[i] [16, 8 tiles] += a [16 strips of rows, D] b [8 n, D]ᵀ. `a` is the warp's first row in its tile.
template <int D, int strips, int tiles>
__device__ inline void multiply_rows(float (&sum)[strips][tiles][4], const bf16* a, const bf16* b) {
  const int lane = lane_index();
  a += (lane % 16) * kPitch<D> + lane / 16 * 8;
  b += (lane / 16 * 8 + lane % 8) * kPitch<D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    uint32_t left[strips][4];
#pragma unroll
    for (int i = 0; i < strips; i++) ldmatrix_x4(left[i], a + 16 * i * kPitch<D> + d);
#pragma unroll
    for (int n = 0; n < tiles; n += 2) {
      uint32_t right[4];
      ldmatrix_x4(right, b + 8 * n * kPitch<D> + d);
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
      for (int i = 0; i < strips; i++) {
        mma_bf16(sum[i][n], left[i], first);
        mma_bf16(sum[i][n + 1], left[i], second);
      }
    }
  }
}

// A strip of accumulators [16, 8 tiles] as the left operand of the next product.
template <int tiles>
__device__ inline void to_fragments(uint32_t (&fragments)[tiles / 2][4], const float (&x)[tiles][4]) {
#pragma unroll
  for (int n = 0; n < tiles; n += 2) {
    fragments[n / 2][0] = pack_bf16(x[n][0], x[n][1]);
    fragments[n / 2][1] = pack_bf16(x[n][2], x[n][3]);
    fragments[n / 2][2] = pack_bf16(x[n + 1][0], x[n + 1][1]);
    fragments[n / 2][3] = pack_bf16(x[n + 1][2], x[n + 1][3]);
  }
}

// sum[i] [16, D] += a[i] [16, 16 depth] b [16 depth, D].
template <int D, int strips, int depth>
__device__ inline void multiply_fragments(float (&sum)[strips][D / 8][4], const uint32_t (&a)[strips][depth][4],
                                          const bf16* b) {
  const int lane = lane_index();
  b += (lane % 16) * kPitch<D> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < depth; k++) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t right[4];
      ldmatrix_x4_trans(right, b + 16 * k * kPitch<D> + 8 * n);
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
      for (int i = 0; i < strips; i++) {
        mma_bf16(sum[i][n], a[i][k], first);
        mma_bf16(sum[i][n + 1], a[i][k], second);
      }
    }
  }
}

// Writes the warp's strip [16, D] of accumulators, row g times factor[0] and row g + 8 times factor[1], as rows of `to`
// through the shared rows `staging`, which are the warp's own. Rows that are not below `rows` are left out.
template <int D>
__device__ inline void store_strip(bf16* to, int64_t stride, int rows, int size, const float (&x)[D / 8][4],
                                   const float (&factor)[2], bf16* staging) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t pair = pack_bf16(x[n][2 * half] * factor[half], x[n][2 * half + 1] * factor[half]);
      store_pack<1>(reinterpret_cast<uint32_t*>(staging + (g + 8 * half) * kPitch<D> + 8 * n + 2 * t), {{pair}});
    }
  }
  __syncwarp();
  for (int at = lane; at < 16 * (D / 8); at += kWarp) {
    const int row = at / (D / 8), column = at % (D / 8) * 8;
    if (row < rows && column < size)
      store_pack<8>(to + row * stride + column, load_pack<8>(staging + row * kPitch<D> + column));
  }
}

// The same in float32, one factor for all rows, without staging: four lanes write 32 bytes side by side.
template <int D>
__device__ inline void store_strip_float(float* to, int64_t stride, int rows, int size, const float (&x)[D / 8][4],
                                         float factor) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (g + 8 * half >= rows) continue;
    float* row = to + (g + 8 * half) * stride;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const int column = 8 * n + 2 * t;
      if (column < size) store_pack<2>(row + column, Pack<float, 2>{{x[n][2 * half] * factor, x[n][2 * half + 1] * factor}});
    }
  }
}

// Whether rows of this operand can be copied 16 bytes at a time.
inline bool copies_whole(const qt_tensor* x) {
  return x->dtype == QT_BFLOAT16 && last_of(x) % 8 == 0 && reinterpret_cast<uintptr_t>(x->data) % 16 == 0;
}

// Calls body with the head size that the kernels are made for: the next one up.
template <class Body>
qt_status with_head_size(int size, const Body& body) {
  if (size <= 32) return body(std::integral_constant<int, 32>{});
  if (size <= 64) return body(std::integral_constant<int, 64>{});
  if (size <= 80) return body(std::integral_constant<int, 80>{});
  if (size <= 96) return body(std::integral_constant<int, 96>{});
  if (size <= 128) return body(std::integral_constant<int, 128>{});
  return body(std::integral_constant<int, 256>{});
}

}  // namespace quantune::cuda::mma
