// The attention's backward in bfloat16 on tensor cores (attention_backward.cuh says which kernel owns what).
#pragma once
#include "attention_backward.cuh"
#include "attention_mma.cuh"

namespace quantune::cuda::mma {

// What a kernel computes: dQ with queries as rows; with keys as rows dK and dV, or one of them where the sums of both would not
// fit into registers.
enum class Gradient { kQ, kKV, kK, kV };

// How a block of threads divides its work: `warps` warps take `strips` strips of 16 rows each, `columns` columns at a time, in
// `stages` buffers.
template <Gradient gradient_, int D_, int warps, int strips, int columns, int stages>
struct BackwardForm {
  static constexpr Gradient gradient = gradient_;
  static constexpr bool kKeys = gradient != Gradient::kQ;
  static constexpr bool kNeedsV = gradient != Gradient::kV;  // dV needs no dP
  static constexpr bool kFirst = gradient != Gradient::kV, kSecond = gradient == Gradient::kKV || gradient == Gradient::kV;
  static constexpr int D = D_, kThreads = 32 * warps, kStrips = strips, kRows = 16 * strips * warps;
  static constexpr int kColumns = columns, kStages = stages;
};

// One column operand pair and what is known of each column: with queries as rows the ends of the keys, with keys as rows the
// queries' rows, lse and delta.
template <class Form>
struct BackwardTiles {
  bf16 *rows_first, *rows_second, *columns_first, *columns_second;
  int32_t* index;      // [stages, columns]
  float *lse, *delta;  // [stages, columns]
  __host__ __device__ explicit BackwardTiles(SharedCarver& carve) {
    constexpr int kRowElements = Form::kRows * kPitch<Form::D>, kColumnElements = Form::kColumns * kPitch<Form::D>;
    rows_first = carve.array<bf16>(kRowElements, 128);
    rows_second = carve.array<bf16>(Form::kNeedsV ? kRowElements : 0, 128);
    columns_first = carve.array<bf16>(Form::kStages * kColumnElements, 128);
    columns_second = carve.array<bf16>(Form::kStages * kColumnElements, 128);
    index = carve.array<int32_t>(Form::kStages * Form::kColumns);
    lse = carve.array<float>(Form::kStages * Form::kColumns);
    delta = carve.array<float>(Form::kStages * Form::kColumns);
  }
};

// The walk of a block over its columns: the whole list for each of its heads in turn.
template <class Form>
struct Walk {
  const int32_t* list;
  int count, pieces, head, n, column;  // pieces: in all heads

  __device__ Walk(const AttentionPlan& plan, int first, int first_head, int heads) : head(first_head), n(-1) {
    list = Form::kKeys ? plan.queries_of(first / kWide) : plan.keys_of(first / kWide);
    count = list[0] * (kNarrow / Form::kColumns);
    pieces = count * heads;
    column = 0;
    if (pieces > 0) next();
  }
  __device__ void next() {
    if (++n == count) {
      n = 0;
      head++;
    }
    constexpr int kParts = kNarrow / Form::kColumns;
    column = list[1 + n / kParts] * kNarrow + n % kParts * Form::kColumns;
  }
};

// What a warp knows of its rows: with queries as rows their stream indices, with keys as rows their ends.
template <class Form>
struct StripOfRows {
  int index[Form::kStrips][2];
  float lse[Form::kStrips][2], delta[Form::kStrips][2];
  Bounds bounds;

  __device__ void start(const AttentionPlan& plan, const RowSums& sums, int head, int first) {
    bounds = {0x7fffffff, -1};
#pragma unroll
    for (int i = 0; i < Form::kStrips; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int at = first + 16 * i + 8 * half + lane_index() / 4, value = Form::kKeys ? plan.ends[at] : plan.rows[at];
        index[i][half] = value;
        lse[i][half] = Form::kKeys ? 0 : sums.lse_of(head)[at];
        delta[i][half] = Form::kKeys ? 0 : sums.delta_of(head)[at];
        if ((Form::kKeys || at < plan.queries) && value < bounds.lowest) bounds.lowest = value;
        if (value > bounds.highest) bounds.highest = value;
      }
    }
    bounds.lowest = warp_min(bounds.lowest);
    bounds.highest = warp_max(bounds.highest);
  }
};

// One block a (64 or 128 queries, head) or a (64 or 128 keys, key head, part of its group): its rows stay in shared memory, the
// columns pass by. The warp's scores have its rows as rows, so that probabilities and their gradients go from the accumulators
// straight into the next products. 3 D T² FLOP (dQ) and 4 D T² (dK, dV) a head (causal). Bound by shared memory: a warp reads
// 256 bytes of columns for each m16n8k16 where it has 16 rows (dK, dV: more would not fit into registers), 128 where it has 32
// (dQ); 128 bytes a cycle make at most 460 TFLOP/s of an H100 in the first case, what mma.sync could do is 600.
template <class Form>
__global__ void __launch_bounds__(Form::kThreads, Form::kStrips)
    attention_backward_mma(BackwardOperands<bf16> x, RowSums sums, AttentionShape s, AttentionPlan plan, int heads,
                           float scale) {
  constexpr int D = Form::D, kStrips = Form::kStrips, kTiles = Form::kColumns / 8, kColumnElements = Form::kColumns * kPitch<D>;
  constexpr bool kKeys = Form::kKeys;
  SharedCarver carve = dynamic_shared();
  const BackwardTiles<Form> tiles(carve);
  if (!plan.fits()) return;
  const int first = static_cast<int>(kKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * Form::kRows;
  const int first_head = static_cast<int>(blockIdx.y) * heads, kv_head = first_head / s.group;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), own = warp_index() * 16 * kStrips;
  const Operand k = head_of(x.k, s.keys, s.kv_heads, kv_head, s.size), v = head_of(x.v, s.keys, s.kv_heads, kv_head, s.size);
  auto q_of = [&](int head) { return head_of(x.q, s.queries, s.heads, head, s.size); };
  auto d_o_of = [&](int head) { return head_of(x.d_o, s.queries, s.heads, head, s.size); };
  auto copy_columns = [&](const Walk<Form>& walk, int stage) {
    copy_tile<D, Form::kColumns, Form::kThreads>(tiles.columns_first + stage * kColumnElements, kKeys ? q_of(walk.head) : k,
                                                 walk.column, s.size);
    copy_tile<D, Form::kColumns, Form::kThreads>(tiles.columns_second + stage * kColumnElements, kKeys ? d_o_of(walk.head) : v,
                                                 walk.column, s.size);
    if (thread < Form::kColumns / 4) {
      const int to = stage * Form::kColumns + 4 * thread, from = walk.column + 4 * thread;
      copy_async_16(tiles.index + to, (kKeys ? plan.rows : plan.ends) + from);
      if (kKeys) copy_async_16(tiles.lse + to, sums.lse_of(walk.head) + from);
      if (kKeys) copy_async_16(tiles.delta + to, sums.delta_of(walk.head) + from);
    }
  };

  Walk<Form> ahead(plan, first, first_head, heads);
  StripOfRows<Form> rows;
  rows.start(plan, sums, first_head, first + own);
  float d_first[kStrips][Form::kFirst ? D / 8 : 2][4] = {},
                                                d_second[kStrips][Form::kSecond ? D / 8 : 2][4] = {};  // dQ or dK; dV
  copy_tile<D, Form::kRows, Form::kThreads>(tiles.rows_first, kKeys ? k : q_of(first_head), first, s.size);
  if constexpr (Form::kNeedsV) {
    copy_tile<D, Form::kRows, Form::kThreads>(tiles.rows_second, kKeys ? v : d_o_of(first_head), first, s.size);
  }
  int column = ahead.column;
  const int pieces = ahead.pieces;
  if (pieces > 0) copy_columns(ahead, 0);
  async_commit();
  for (int n = 0; n < pieces; n++) {
    const int stage = Form::kStages == 2 ? n % 2 : 0;
    if (Form::kStages == 2) {
      if (n + 1 < pieces) {
        ahead.next();
        copy_columns(ahead, 1 - stage);
      }
      async_commit();
    }
    async_wait<Form::kStages - 1>();
    __syncthreads();
    const bf16* its_first = tiles.columns_first + stage * kColumnElements;
    const bf16* its_second = tiles.columns_second + stage * kColumnElements;
    const Seen state = kKeys ? seen(plan.rows_of_tile(column / kNarrow), first + own, 16 * kStrips, rows.bounds)
                             : seen(rows.bounds, column, Form::kColumns, plan.ends_of_tile(column / kNarrow));
    if (state != Seen::kNone) {
      float p[kStrips][kTiles][4] = {}, ds[kStrips][kTiles][4] = {};
      multiply_rows<D>(p, tiles.rows_first + own * kPitch<D>, its_first);
      if constexpr (Form::kNeedsV) multiply_rows<D>(ds, tiles.rows_second + own * kPitch<D>, its_second);
#pragma unroll
      for (int t = 0; t < kTiles; t++) {
        const int at = 8 * t + 2 * (lane % 4), from = stage * Form::kColumns + at;
        const Pack<int32_t, 2> index = load_pack<2>(tiles.index + from);
        Pack<float, 2> lse{}, delta{};
        if constexpr (kKeys) {
          lse = load_pack<2>(tiles.lse + from);
          delta = load_pack<2>(tiles.delta + from);
        }
#pragma unroll
        for (int i = 0; i < kStrips; i++) {
#pragma unroll
          for (int c = 0; c < 4; c++) {
            const float shift = kKeys ? lse[c % 2] : rows.lse[i][c / 2], center = kKeys ? delta[c % 2] : rows.delta[i][c / 2];
            const int mine = first + own + 16 * i + 8 * (c / 2) + lane / 4, its = column + at + c % 2;
            const bool sees = state == Seen::kAll || (kKeys ? visible(index[c % 2], mine, rows.index[i][c / 2])
                                                            : visible(rows.index[i][c / 2], its, index[c % 2]));
            p[i][t][c] = sees ? exp2_approximate(fmaf(p[i][t][c], scale * kLog2E, -shift)) : 0.0f;
            if constexpr (Form::kNeedsV) ds[i][t][c] = p[i][t][c] * (ds[i][t][c] - center);
          }
        }
      }
      uint32_t fragments[kStrips][kTiles / 2][4];
      if constexpr (Form::kSecond) {
#pragma unroll
        for (int i = 0; i < kStrips; i++) to_fragments(fragments[i], p[i]);
        multiply_fragments<D>(d_second, fragments, its_second);
      }
      if constexpr (Form::kFirst) {
#pragma unroll
        for (int i = 0; i < kStrips; i++) to_fragments(fragments[i], ds[i]);
        multiply_fragments<D>(d_first, fragments, its_first);
      }
    }
    __syncthreads();  // all have done with these columns
    if (Form::kStages == 1) {
      if (n + 1 < pieces) {
        ahead.next();
        copy_columns(ahead, 0);
      }
      async_commit();
    }
    column = ahead.column;
  }
  async_wait<0>();
  __syncthreads();  // the rows have arrived even if there were no columns: their tile is written again below

#pragma unroll
  for (int i = 0; i < kStrips; i++) {
    const int from = first + own + 16 * i;
    if constexpr (!kKeys) {
      const float factor[2] = {scale, scale};
      const int64_t stride = static_cast<int64_t>(s.heads) * s.size;
      store_strip<D>(x.dq + from * stride + static_cast<int64_t>(first_head) * s.size, stride, s.queries - from, s.size,
                     d_first[i], factor, tiles.rows_first + (own + 16 * i) * kPitch<D>);
    } else {
      const int64_t stride = static_cast<int64_t>(s.kv_heads) * s.size, part = first_head % s.group / heads;
      const int64_t at = (part * s.keys + from) * stride + static_cast<int64_t>(kv_head) * s.size;
      if constexpr (Form::kFirst) store_strip_float<D>(x.dk + at, stride, s.keys - from, s.size, d_first[i], scale);
      if constexpr (Form::kSecond) store_strip_float<D>(x.dv + at, stride, s.keys - from, s.size, d_second[i], 1.0f);
    }
  }
}

// Sums `parts` arrays of `count` elements, one behind the other, in their order. Bound by memory.
__global__ void __launch_bounds__(256) attention_add_parts(float* to, const float* parts, int64_t count, int number) {
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (i >= count) return;
  Pack<float, 4> sum = load_pack<4>(parts + i);
  for (int n = 1; n < number; n++) {
    const Pack<float, 4> part = load_pack<4>(parts + n * count + i);
#pragma unroll
    for (int c = 0; c < 4; c++) sum[c] += part[c];
  }
  store_pack<4>(to + i, sum);
}

// One call: operands and what the launches share.
struct Backward {
  qt_stream* stream;
  BackwardOperands<bf16> x;
  RowSums sums;
  AttentionShape s;
  AttentionPlan plan;
  float scale;
  int parts;  // blocks among which the heads of a group are divided for dK and dV

  template <class Form>
  qt_status run() const {
    const int heads = Form::kKeys ? s.group / parts : 1;
    const dim3 grid(ceil_div(Form::kKeys ? s.keys : s.queries, Form::kRows), Form::kKeys ? s.kv_heads * parts : s.heads);
    return launch(attention_backward_mma<Form>, grid, Form::kThreads, shared_bytes<BackwardTiles<Form>>(), stream, x, sums, s,
                  plan, heads, scale);
  }
  // Whether `blocks` blocks of the form fit into a multiprocessor (which keeps 1 KB of each for itself).
  template <class Form>
  bool fits(int blocks = 1) const {
    return blocks * static_cast<int64_t>(shared_bytes<BackwardTiles<Form>>() + 1024) <= stream->shared_limit + 1024;
  }

  template <class Form, class... Others>
  qt_status run_first_that_fits() const {
    if constexpr (sizeof...(Others) > 0) {
      if (!fits<Form>()) return run_first_that_fits<Others...>();
    }
    return run<Form>();
  }

  // The forms of each head size: 32 rows a warp for dQ, but 16 where a head of 128 leaves room for one block alone (sm_80), and
  // small ones for GPUs with 99 KB a block (sm_86, sm_89). False where this GPU has too little even for these (a head size
  // above 128 on such a GPU).
  template <int D>
  qt_status run(bool& served) const {
    served = true;
    qt_status status = QT_OK;
    if constexpr (D <= 96) {
      status = run<BackwardForm<Gradient::kQ, D, 4, 2, D <= 64 ? 64 : 32, 2>>();
    } else if constexpr (D == 128) {
      using Wide = BackwardForm<Gradient::kQ, D, 4, 2, 32, 2>;
      status =
          fits<Wide>(2)
              ? run<Wide>()
              : run_first_that_fits<BackwardForm<Gradient::kQ, D, 8, 1, 64, 2>, BackwardForm<Gradient::kQ, D, 4, 1, 32, 2>>();
    } else {
      using Q = BackwardForm<Gradient::kQ, D, 4, 1, 32, 2>;
      served = fits<Q>();
      if (served) status = run<Q>();
    }
    if (status != QT_OK || !served) return status;
    using KV = BackwardForm<Gradient::kKV, D, 8, 1, 64, 2>;
    if constexpr (D <= 80) return run<KV>();
    if constexpr (D == 96 || D == 128) return run_first_that_fits<KV, BackwardForm<Gradient::kKV, D, 4, 1, 32, 2>>();
    if constexpr (D > 128) {
      status = run<BackwardForm<Gradient::kK, D, 4, 1, 32, 2>>();
      if (status == QT_OK) status = run<BackwardForm<Gradient::kV, D, 4, 1, 32, 2>>();
    }
    return status;
  }
};

// Into how many parts a group is divided, so that 512 blocks keep a GPU busy: a matter of shape, not of the GPU at hand.
inline int group_parts(const AttentionShape& s) {
  const int blocks = ceil_div(s.keys, kWide) * s.kv_heads;
  int parts = 1;
  while (parts < s.group && (s.group % parts != 0 || blocks * parts < 512)) parts++;
  return parts;
}

// Sets `served` to false where no form fits this GPU.
inline qt_status backward(qt_stream* stream, const BackwardOperands<bf16>& operands, const RowSums& sums,
                          const AttentionShape& s, const AttentionPlan& plan, float scale, bool& served) {
  Backward call{stream, operands, sums, s, plan, scale, group_parts(s)};
  const int64_t count = static_cast<int64_t>(s.keys) * s.kv_heads * s.size;
  if (call.parts > 1) {
    call.x.dk = stream->scratch_of<float>(call.parts * count);
    call.x.dv = stream->scratch_of<float>(call.parts * count);
    if (!call.x.dk || !call.x.dv) return stream->out_of_scratch();
  }
  qt_status status = with_head_size(s.size, [&](auto size) { return call.template run<decltype(size)::value>(served); });
  if (status != QT_OK || !served || call.parts == 1) return status;
  for (int which = 0; which < 2 && status == QT_OK; which++) {
    status = launch(attention_add_parts, ceil_div<int64_t>(count, 1024), 256, 0, stream, which ? operands.dv : operands.dk,
                    which ? call.x.dv : call.x.dk, count, call.parts);
  }
  return status;
}

}  // namespace quantune::cuda::mma
