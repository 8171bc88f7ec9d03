// The attention's backward in bfloat16 on tensor cores (attention_backward.cuh says which kernel owns what).
#pragma once
#include "attention_backward.cuh"
#include "attention_mma.cuh"

namespace quantune::cuda::mma {

// What a kernel computes: dQ with queries as rows; with keys as rows dK and dV, or one of them where the sums of both would not
// fit into registers.
enum class Gradient { kQ, kKV, kK, kV };

// How a block of threads divides its work: `warps` warps take 16 rows each, `columns` columns at a time, in `stages` buffers.
template <Gradient gradient_, int D_, int warps, int columns, int stages>
struct BackwardForm {
  static constexpr Gradient gradient = gradient_;
  static constexpr bool kKeys = gradient != Gradient::kQ;
  static constexpr bool kNeedsV = gradient != Gradient::kV;  // dV needs no dP
  static constexpr bool kFirst = gradient != Gradient::kV, kSecond = gradient == Gradient::kKV || gradient == Gradient::kV;
  static constexpr int D = D_, kWarps = warps, kThreads = 32 * warps, kRows = 16 * warps, kColumns = columns, kStages = stages;
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

// The walk of a block over its columns: with keys as rows all queries of the list for each head of the group in turn.
template <class Form>
struct Walk {
  const int32_t* list;
  int count, pieces, head, n, column;  // pieces: in all heads

  __device__ Walk(const AttentionPlan& plan, const AttentionShape& s, int first, int first_head) : head(first_head), n(-1) {
    list = Form::kKeys ? plan.queries_of(first / kWide) : plan.keys_of(first / kWide);
    count = list[0] * (kNarrow / Form::kColumns);
    pieces = count * (Form::kKeys ? s.group : 1);
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

// What a warp knows of its 16 rows: with queries as rows their stream indices, with keys as rows their ends.
template <class Form>
struct StripOfRows {
  int index[2];
  float lse[2], delta[2];
  Bounds bounds;

  __device__ void start(const AttentionPlan& plan, const RowSums& sums, int head, int first) {
    bounds = {0x7fffffff, -1};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = first + 8 * half + lane_index() / 4;
      index[half] = Form::kKeys ? plan.ends[at] : plan.rows[at];
      lse[half] = Form::kKeys ? 0 : sums.lse_of(head)[at];
      delta[half] = Form::kKeys ? 0 : sums.delta_of(head)[at];
      if ((Form::kKeys || at < plan.queries) && index[half] < bounds.lowest) bounds.lowest = index[half];
      if (index[half] > bounds.highest) bounds.highest = index[half];
    }
    bounds.lowest = warp_min(bounds.lowest);
    bounds.highest = warp_max(bounds.highest);
  }
};

// One block a (64 or 128 queries, head) or a (64 or 128 keys, key head): its rows stay in shared memory, the columns pass by.
// The warp's scores have its rows as rows, so that probabilities and their gradients go from the accumulators straight into the
// next products. 3 D T² (dQ) and 4 D T² (dK, dV) products a head (causal). Bound by shared memory: a warp of 16 rows reads 256
// bytes of columns for each m16n8k16, half of what the tensor cores of an H100 would take by mma.sync.
template <class Form>
__global__ void __launch_bounds__(Form::kThreads, 1)
    attention_backward_mma(BackwardOperands<bf16> x, RowSums sums, AttentionShape s, AttentionPlan plan, float scale) {
  constexpr int D = Form::D, kTiles = Form::kColumns / 8, kColumnElements = Form::kColumns * kPitch<D>;
  constexpr bool kKeys = Form::kKeys;
  SharedCarver carve = dynamic_shared();
  const BackwardTiles<Form> tiles(carve);
  if (!plan.fits()) return;
  const int first = static_cast<int>(kKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * Form::kRows;
  const int first_head = static_cast<int>(blockIdx.y) * (kKeys ? s.group : 1), kv_head = first_head / s.group;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), own = warp_index() * 16;
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

  Walk<Form> ahead(plan, s, first, first_head);
  StripOfRows<Form> rows;
  rows.start(plan, sums, first_head, first + own);
  float d_first[1][Form::kFirst ? D / 8 : 2][4] = {}, d_second[1][Form::kSecond ? D / 8 : 2][4] = {};  // dQ or dK; dV
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
    const Seen state = kKeys ? seen(plan.rows_of_tile(column / kNarrow), first + own, 16, rows.bounds)
                             : seen(rows.bounds, column, Form::kColumns, plan.ends_of_tile(column / kNarrow));
    if (state != Seen::kNone) {
      float p[1][kTiles][4] = {}, ds[1][kTiles][4] = {};
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
        for (int c = 0; c < 4; c++) {
          const float shift = kKeys ? lse[c % 2] : rows.lse[c / 2], center = kKeys ? delta[c % 2] : rows.delta[c / 2];
          const int mine = first + own + 8 * (c / 2) + lane / 4, its = column + at + c % 2;
          const bool sees = state == Seen::kAll || (kKeys ? visible(index[c % 2], mine, rows.index[c / 2])
                                                          : visible(rows.index[c / 2], its, index[c % 2]));
          p[0][t][c] = sees ? exp2_approximate(fmaf(p[0][t][c], scale * kLog2E, -shift)) : 0.0f;
          if constexpr (Form::kNeedsV) ds[0][t][c] = p[0][t][c] * (ds[0][t][c] - center);
        }
      }
      uint32_t fragments[1][kTiles / 2][4];
      if constexpr (Form::kSecond) {
        to_fragments(fragments[0], p[0]);
        multiply_fragments<D>(d_second, fragments, its_second);
      }
      if constexpr (Form::kFirst) {
        to_fragments(fragments[0], ds[0]);
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

  const int from = first + own;
  if constexpr (!kKeys) {
    const float factor[2] = {scale, scale};
    store_strip<D>(x.dq + (static_cast<int64_t>(from) * s.heads + first_head) * s.size, static_cast<int64_t>(s.heads) * s.size,
                   s.queries - from, s.size, d_first[0], factor, tiles.rows_first + own * kPitch<D>);
  } else {
    const int64_t stride = static_cast<int64_t>(s.kv_heads) * s.size,
                  at = from * stride + static_cast<int64_t>(kv_head) * s.size;
    if constexpr (Form::kFirst) store_strip_float<D>(x.dk + at, stride, s.keys - from, s.size, d_first[0], scale);
    if constexpr (Form::kSecond) store_strip_float<D>(x.dv + at, stride, s.keys - from, s.size, d_second[0], 1.0f);
  }
}

template <class Form>
qt_status launch_backward(qt_stream* stream, const BackwardOperands<bf16>& x, const RowSums& sums, const AttentionShape& s,
                          const AttentionPlan& plan, float scale) {
  const dim3 grid(ceil_div(Form::kKeys ? s.keys : s.queries, Form::kRows), Form::kKeys ? s.kv_heads : s.heads);
  return launch(attention_backward_mma<Form>, grid, Form::kThreads, shared_bytes<BackwardTiles<Form>>(), stream, x, sums, s,
                plan, scale);
}

// Whether a block of the form (its largest gradient) fits into shared memory.
template <class Form>
bool fits(const qt_stream* stream) {
  return static_cast<int64_t>(shared_bytes<BackwardTiles<Form>>()) <= stream->shared_limit;
}

template <Gradient... gradients, class Start>
qt_status each_gradient(const Start& start) {
  qt_status status = QT_OK;
  (void)std::initializer_list<int>{
      (status == QT_OK ? (status = start(std::integral_constant<Gradient, gradients>{}), 0) : 0)...};
  return status;
}

// Sets `served` to false where no form fits this GPU's shared memory.
inline qt_status backward(qt_stream* stream, const BackwardOperands<bf16>& x, const RowSums& sums, const AttentionShape& s,
                          const AttentionPlan& plan, float scale, bool& served) {
  return with_head_size(s.size, [&](auto head_size) {
    constexpr int D = decltype(head_size)::value;
    served = true;
    if constexpr (D <= 128) {
      if (fits<BackwardForm<Gradient::kKV, D, 8, 64, 2>>(stream)) {
        return each_gradient<Gradient::kQ, Gradient::kKV>([&](auto g) {
          return launch_backward<BackwardForm<decltype(g)::value, D, 8, 64, 2>>(stream, x, sums, s, plan, scale);
        });
      }
      if (fits<BackwardForm<Gradient::kKV, D, 4, 32, 2>>(stream)) {
        return each_gradient<Gradient::kQ, Gradient::kKV>([&](auto g) {
          return launch_backward<BackwardForm<decltype(g)::value, D, 4, 32, 2>>(stream, x, sums, s, plan, scale);
        });
      }
    } else if (fits<BackwardForm<Gradient::kQ, D, 4, 32, 2>>(stream)) {
      return each_gradient<Gradient::kQ, Gradient::kK, Gradient::kV>([&](auto g) {
        return launch_backward<BackwardForm<decltype(g)::value, D, 4, 32, 2>>(stream, x, sums, s, plan, scale);
      });
    }
    served = false;
    return QT_OK;
  });
}

}  // namespace quantune::cuda::mma
