// What both forms of the attention's backward share. Probabilities are recomputed from the log-sum-exp, P = 2^(S - lse), and
// with delta = rowsum(dO ∘ O): dS = P ∘ (dO Vᵀ - delta), dQ = scale dS K, dK = scale dSᵀ Q, dV = Pᵀ dO.
//
// Two kernels, each of which owns what it writes: one takes tiles of queries and walks over their keys (dQ), one takes tiles of
// keys and walks over their queries and all heads of the group (dK, dV). S and dP are computed in both, 7 products instead of
// 5; in exchange no sum needs an atomic or another block's result, so every gradient is summed in float32 in a fixed order,
// those of a prefix that many segments share included. A kernel has *rows* (what its block owns) and *columns* (what passes
// by), each with two operands: with queries as rows Q and dO against K and V, with keys as rows K and V against Q and dO.
#pragma once
#include "attention_plan.cuh"
#include "device/launch.h"
#include "device/warp.h"

namespace quantune::cuda {

// For each head and query (padded to whole wide tiles, where it holds 0): lse in units of log 2, and delta.
struct RowSums {
  float *lse, *delta;  // [H, pitch]
  int pitch;

  __device__ const float* lse_of(int head) const { return lse + static_cast<int64_t>(head) * pitch; }
  __device__ const float* delta_of(int head) const { return delta + static_cast<int64_t>(head) * pitch; }
};

template <class T>
struct BackwardOperands {
  T* dq;
  float *dk, *dv;
  const T *d_o, *o, *q, *k, *v;
  const float* lse;
};

// One warp a (query, head), N neighbours a lane. Reads dO and O once: 4 bytes of bfloat16 for each multiplication, bound by
// memory.
template <class T, int N>
__global__ void __launch_bounds__(256)
    attention_row_sums(RowSums to, BackwardOperands<T> x, AttentionShape s, AttentionPlan plan, AttentionChecks checks) {
  const int first = static_cast<int>(blockIdx.x) * 8, query = first + warp_index(), head = static_cast<int>(blockIdx.y);
  check_call(plan, checks, first, head == 0 ? 8 : 0);
  float sum = 0, lse = 0;
  if (query < s.queries) {
    const int64_t at = static_cast<int64_t>(query) * s.heads + head;
    for (int d = N * lane_index(); d < s.size; d += N * kWarp) {
      const Pack<T, N> a = load_pack<N>(x.d_o + at * s.size + d), b = load_pack<N>(x.o + at * s.size + d);
#pragma unroll
      for (int i = 0; i < N; i++) sum = fmaf(to_float(a[i]), to_float(b[i]), sum);
    }
    lse = x.lse[at];
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) {
    const int64_t at = static_cast<int64_t>(head) * to.pitch + query;
    to.lse[at] = lse == -INFINITY ? 0 : lse * kLog2E;
    to.delta[at] = sum;
  }
}

}  // namespace quantune::cuda
