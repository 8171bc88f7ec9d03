// attention in bfloat16 on tensor cores.
#pragma once
#include "attention_mma.cuh"
#include "device/launch.h"

namespace quantune::cuda::mma {

struct ForwardOperands {
  bf16* o;
  float* lse;  // null: not asked for
  const bf16 *q, *k, *v;
};

// How a block of threads divides its work: `warps` warps take `strips` strips of 16 queries each, `columns` keys at a time.
template <int D>
struct ForwardForm {
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kStrips = D <= 128 ? 2 : 1, kRows = 16 * kStrips * kWarps;
  static constexpr int kColumns = D <= 128 ? 64 : 32;
};

template <int D>
struct ForwardTiles {
  bf16 *q, *k, *v;
  int32_t* ends;
  __host__ __device__ explicit ForwardTiles(SharedCarver& carve) {
    using Form = ForwardForm<D>;
    q = carve.array<bf16>(Form::kRows * kPitch<D>, 128);
    k = carve.array<bf16>(Form::kColumns * kPitch<D>, 128);
    v = carve.array<bf16>(Form::kColumns * kPitch<D>, 128);
    ends = carve.array<int32_t>(Form::kColumns);
  }
};

// The n-th piece of `columns` keys that a list of narrow tiles holds.
template <int columns>
__device__ inline int nth_column(const int32_t* list, int n) {
  constexpr int kParts = kNarrow / columns;
  return list[1 + n / kParts] * kNarrow + n % kParts * columns;
}

// A warp's strips of queries: the online softmax of each lane's rows g and g + 8 of a strip. The highest
// score is that of all lanes; `total` is of the lane's own columns until the end.
template <int strips>
struct StripRows {
  Bounds bounds;  // of the warp's rows; the rows themselves are read again where a mask needs them, registers are scarce
  float highest[strips][2], total[strips][2];

  __device__ void start(const AttentionPlan& plan, int first) {
    bounds = {0x7fffffff, -1};
#pragma unroll
    for (int i = 0; i < strips; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int query = first + 16 * i + 8 * half + lane_index() / 4, at = plan.rows[query];
        if (query < plan.queries && at < bounds.lowest) bounds.lowest = at;
        if (at > bounds.highest) bounds.highest = at;
        highest[i][half] = -INFINITY;
        total[i][half] = 0;
      }
    }
    bounds.lowest = warp_min(bounds.lowest);
    bounds.highest = warp_max(bounds.highest);
  }

  // Scores become 2^(scale s - highest); sums so far and `o` decay.
  template <int tiles, int D8>
  __device__ void soften(float (&s)[strips][tiles][4], float (&o)[strips][D8][4], float scale) {
#pragma unroll
    for (int i = 0; i < strips; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = highest[i][half];
#pragma unroll
        for (int n = 0; n < tiles; n++) top = fmaxf(top, fmaxf(s[i][n][2 * half], s[i][n][2 * half + 1]));
        top = warp_max<4>(top);
        const float base = top == -INFINITY ? 0 : top * scale;  // nothing seen yet: every probability is 2^-inf = 0
        const float decay = exp2_approximate(highest[i][half] * scale - base);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < tiles; n++) {
#pragma unroll
          for (int c = 2 * half; c < 2 * half + 2; c++) {
            s[i][n][c] = exp2_approximate(fmaf(s[i][n][c], scale, -base));
            sum += s[i][n][c];
          }
        }
        highest[i][half] = top;
        total[i][half] = total[i][half] * decay + sum;
#pragma unroll
        for (int n = 0; n < D8; n++) {
          o[i][n][2 * half] *= decay;
          o[i][n][2 * half + 1] *= decay;
        }
      }
    }
  }
};

// One block a (128 or 64 queries, head): Q stays in shared memory, keys and values pass by. V's copy runs under the product
// for the scores, the next K's under the product with V; two blocks a multiprocessor fill each other's waits. 2 D T² products a
// head (causal): bound by the tensor cores, and behind them by shared memory (a warp of 32 rows reads 128 bytes for each
// m16n8k16).
template <int D>
__global__ void __launch_bounds__(ForwardForm<D>::kThreads, 2)
    attention_mma(ForwardOperands x, AttentionShape s, AttentionPlan plan, AttentionChecks checks, float scale) {
  using Form = ForwardForm<D>;
  constexpr int kTiles = Form::kColumns / 8, kStrips = Form::kStrips, kThreads = Form::kThreads;
  SharedCarver carve = dynamic_shared();
  const ForwardTiles<D> tiles(carve);
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Form::kRows;
  if (!check_call(plan, checks, first, Form::kRows)) return;
  const int lane = lane_index(), own = warp_index() * 16 * kStrips;  // the warp's first row
  const Operand k = head_of(x.k, s.keys, s.kv_heads, head / s.group, s.size);
  const Operand v = head_of(x.v, s.keys, s.kv_heads, head / s.group, s.size);
  const int32_t* list = plan.keys_of(first / kWide);
  const int count = list[0] * (kNarrow / Form::kColumns);
  auto copy_keys = [&](int key) {
    copy_tile<D, Form::kColumns, kThreads>(tiles.k, k, key, s.size);
    if (threadIdx.x < Form::kColumns / 4) copy_async_16(tiles.ends + 4 * threadIdx.x, plan.ends + key + 4 * threadIdx.x);
  };

  StripRows<kStrips> rows;
  rows.start(plan, first + own);
  float o[kStrips][D / 8][4] = {};
  copy_tile<D, Form::kRows, kThreads>(tiles.q, head_of(x.q, s.queries, s.heads, head, s.size), first, s.size);
  int key = count > 0 ? nth_column<Form::kColumns>(list, 0) : 0;
  if (count > 0) copy_keys(key);
  async_commit();
  for (int n = 0; n < count; n++) {
    async_wait<0>();
    __syncthreads();  // these keys are there, and all have done with the values before
    copy_tile<D, Form::kColumns, kThreads>(tiles.v, v, key, s.size);
    async_commit();
    const Seen state = seen(rows.bounds, key, Form::kColumns, plan.ends_of_tile(key / kNarrow));
    float scores[kStrips][kTiles][4] = {};
    if (state != Seen::kNone) {
      multiply_rows<D>(scores, tiles.q + own * kPitch<D>, tiles.k);
      if (state == Seen::kSome) {
        int row[kStrips][2];
#pragma unroll
        for (int i = 0; i < 2 * kStrips; i++) row[i / 2][i % 2] = plan.rows[first + own + 8 * i + lane / 4];
#pragma unroll
        for (int t = 0; t < kTiles; t++) {
          const int column = 8 * t + 2 * (lane % 4);
          const Pack<int32_t, 2> end = load_pack<2>(tiles.ends + column);
#pragma unroll
          for (int i = 0; i < kStrips; i++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
              if (!visible(row[i][c / 2], key + column + c % 2, end[c % 2])) scores[i][t][c] = -INFINITY;
            }
          }
        }
      }
      rows.soften(scores, o, scale);
    }
    async_wait<0>();
    __syncthreads();  // the values are there, and all have done with the keys
    if (n + 1 < count) {
      key = nth_column<Form::kColumns>(list, n + 1);
      copy_keys(key);
    }
    async_commit();
    if (state != Seen::kNone) {
      uint32_t p[kStrips][kTiles / 2][4];
#pragma unroll
      for (int i = 0; i < kStrips; i++) to_fragments(p[i], scores[i]);
      multiply_fragments<D>(o, p, tiles.v);
    }
  }
  async_wait<0>();
  __syncthreads();  // Q has arrived even if there were no keys: its tile is written again below

#pragma unroll
  for (int i = 0; i < kStrips; i++) {
    float inverse[2];
    const int from = first + own + 16 * i;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float total = warp_sum<4>(rows.total[i][half]);
      inverse[half] = total == 0 ? 0 : 1 / total;  // a query that sees nothing gets 0; NaN stays NaN
      const int query = from + 8 * half + lane / 4;
      if (x.lse && lane % 4 == 0 && query < s.queries) {
        const float lse = total == 0 ? -INFINITY : rows.highest[i][half] * scale * kLn2 + logf(total);
        x.lse[static_cast<int64_t>(query) * s.heads + head] = lse;
      }
    }
    store_strip<D>(x.o + (static_cast<int64_t>(from) * s.heads + head) * s.size, static_cast<int64_t>(s.heads) * s.size,
                   s.queries - from, s.size, o[i], inverse, tiles.q + (own + 16 * i) * kPitch<D>);
  }
}

inline qt_status forward(qt_stream* stream, const ForwardOperands& x, const AttentionShape& s, const AttentionPlan& plan,
                         const AttentionChecks& checks, float scale) {
  return with_head_size(s.size, [&](auto head_size) {
    constexpr int D = decltype(head_size)::value;
    using Form = ForwardForm<D>;
    return launch(attention_mma<D>, dim3(ceil_div(s.queries, Form::kRows), s.heads), Form::kThreads,
                  shared_bytes<ForwardTiles<D>>(), stream, x, s, plan, checks, scale * kLog2E);
  });
}

}  // namespace quantune::cuda::mma
