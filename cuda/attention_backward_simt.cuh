// The attention's backward in float32 FMA, for float32 and for bfloat16 that the tensor core form does not serve.
#pragma once
#include "attention_backward.cuh"
#include "attention_simt.cuh"

namespace quantune::cuda::simt {

struct BackwardTiles {
  float *left, *right, *p, *ds;
  __host__ __device__ explicit BackwardTiles(SharedCarver& carve) {
    left = carve.array<float>(kTile * kPitch);
    right = carve.array<float>(kTile * kPitch);
    p = carve.array<float>(kTile * kPitch);
    ds = carve.array<float>(kTile * kPitch);
  }
};

// Writes a thread's part of [rows, heads, size] at one head.
template <class T, int chunks>
__device__ void store_rows(T* to, const Accumulator (&x)[chunks], int row, int rows, int heads, int head, int size,
                           float factor) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < kSide; i++) {
    const int at = row + kSide * (thread / 16) + i;
    if (at >= rows) break;
#pragma unroll
    for (int c = 0; c < chunks; c++) {
#pragma unroll
      for (int j = 0; j < kSide; j++) {
        const int column = c * kTile + kSide * (thread % 16) + j;
        if (column < size) to[(static_cast<int64_t>(at) * heads + head) * size + column] = from_float<T>(x[c].v[i][j] * factor);
      }
    }
  }
}

// One block a (tile of 64 queries, head), or a (tile of 64 keys, key head). Bound by shared memory and FMA.
template <class T, bool keys_are_rows, int chunks>
__global__ void __launch_bounds__(kThreads)
    attention_backward_simt(BackwardOperands<T> x, RowSums sums, AttentionShape s, AttentionPlan plan, float scale) {
  SharedCarver carve = dynamic_shared();
  const BackwardTiles tiles(carve);
  if (!plan.fits()) return;
  const int tile = static_cast<int>(keys_are_rows ? blockIdx.x : gridDim.x - 1 - blockIdx.x), first = tile * kNarrow;
  const int kv_head = static_cast<int>(blockIdx.y) / (keys_are_rows ? 1 : s.group), thread = static_cast<int>(threadIdx.x);
  const int first_head = static_cast<int>(blockIdx.y) * (keys_are_rows ? s.group : 1);
  const Operand<T> k = head_of(x.k, s.keys, s.kv_heads, kv_head, s.size), v = head_of(x.v, s.keys, s.kv_heads, kv_head, s.size);
  const int32_t* list = keys_are_rows ? plan.queries_of(tile / 2) : plan.keys_of(tile / 2);
  Accumulator d_first[chunks], d_second[keys_are_rows ? chunks : 1];  // dQ; or dK and dV
  for (Accumulator& part : d_first) part.clear();
  for (Accumulator& part : d_second) part.clear();

  for (int head = first_head; head < first_head + (keys_are_rows ? s.group : 1); head++) {
    const Operand<T> q = head_of(x.q, s.queries, s.heads, head, s.size), d_o = head_of(x.d_o, s.queries, s.heads, head, s.size);
    for (int n = 0; n < list[0]; n++) {
      const int other = list[1 + n], column = other * kNarrow;
      const Seen state = keys_are_rows ? seen(plan.rows_of_tile(other), first, kNarrow, plan.ends_of_tile(tile))
                                       : seen(plan.rows_of_tile(tile), column, kNarrow, plan.ends_of_tile(other));
      if (state == Seen::kNone) continue;
      Accumulator p, ds;
      multiply_heads(p, keys_are_rows ? k : q, first, keys_are_rows ? q : k, column, s.size, tiles.left, tiles.right);
      multiply_heads(ds, keys_are_rows ? v : d_o, first, keys_are_rows ? d_o : v, column, s.size, tiles.left, tiles.right);
#pragma unroll
      for (int i = 0; i < kSide; i++) {
#pragma unroll
        for (int j = 0; j < kSide; j++) {
          const int mine = first + kSide * (thread / 16) + i, its = column + kSide * (thread % 16) + j;
          const int query = keys_are_rows ? its : mine, key = keys_are_rows ? mine : its;
          const bool sees = state == Seen::kAll || visible(plan.rows[query], key, plan.ends[key]);
          p.v[i][j] = sees ? exp2f(fmaf(p.v[i][j], scale * kLog2E, -sums.lse_of(head)[query])) : 0.0f;
          ds.v[i][j] = p.v[i][j] * (ds.v[i][j] - sums.delta_of(head)[query]);
        }
      }
      if constexpr (keys_are_rows) store_transposed(tiles.p, p);
      store_transposed(tiles.ds, ds);
#pragma unroll
      for (int c = 0; c < chunks; c++) {
        if (c * kTile >= s.size) break;
        __syncthreads();
        load_tile<false>(tiles.right, keys_are_rows ? q : k, column, c * kTile, s.size);
        if constexpr (keys_are_rows) load_tile<false>(tiles.left, d_o, column, c * kTile, s.size);
        __syncthreads();
        multiply(d_first[c], tiles.ds, tiles.right, kTile);
        if constexpr (keys_are_rows) multiply(d_second[c], tiles.p, tiles.left, kTile);
      }
    }
  }
  if constexpr (keys_are_rows) {
    store_rows(x.dk, d_first, first, s.keys, s.kv_heads, kv_head, s.size, scale);
    store_rows(x.dv, d_second, first, s.keys, s.kv_heads, kv_head, s.size, 1.0f);
  } else {
    store_rows(x.dq, d_first, first, s.queries, s.heads, first_head, s.size, scale);
  }
}

template <class T, int chunks>
qt_status launch_backward(qt_stream* stream, const BackwardOperands<T>& x, const RowSums& sums, const AttentionShape& s,
                          const AttentionPlan& plan, float scale) {
  const qt_status status = launch(attention_backward_simt<T, false, chunks>, dim3(ceil_div(s.queries, kNarrow), s.heads),
                                  kThreads, shared_bytes<BackwardTiles>(), stream, x, sums, s, plan, scale);
  if (status != QT_OK) return status;
  return launch(attention_backward_simt<T, true, chunks>, dim3(ceil_div(s.keys, kNarrow), s.kv_heads), kThreads,
                shared_bytes<BackwardTiles>(), stream, x, sums, s, plan, scale);
}

template <class T>
qt_status backward(qt_stream* stream, const BackwardOperands<T>& x, const RowSums& sums, const AttentionShape& s,
                   const AttentionPlan& plan, float scale) {
  if (s.size <= kTile) return launch_backward<T, 1>(stream, x, sums, s, plan, scale);
  if constexpr (std::is_same<T, float>::value) {
    if (s.size <= 2 * kTile) return launch_backward<T, 2>(stream, x, sums, s, plan, scale);
  }
  return launch_backward<T, 4>(stream, x, sums, s, plan, scale);
}

}  // namespace quantune::cuda::simt
