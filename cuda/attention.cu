// attention: flash attention (Dao et al. 2022) over the tiles that the plan lists. Which form serves: tensor cores where the
// operands are bfloat16 and rows can be copied 16 bytes at a time (attention_mma.cuh), else SIMT in float32 below.
#include <cmath>

#include "attention_forward_mma.cuh"
#include "attention_plan.cuh"
#include "attention_simt.cuh"
#include "device/launch.h"
#include "kernels.h"

namespace quantune::cuda {
namespace {

template <class T>
struct ForwardOperands {
  T* o;
  float* lse;  // null: not asked for
  const T *q, *k, *v;
};

// ---- SIMT --------------------------------------------------------------------------------------------------------------

struct ForwardTiles {
  float *left, *right, *p;
  __host__ __device__ explicit ForwardTiles(SharedCarver& carve) {
    left = carve.array<float>(simt::kTile * simt::kPitch);
    right = carve.array<float>(simt::kTile * simt::kPitch);
    p = carve.array<float>(simt::kTile * simt::kPitch);
  }
};

// A thread's four rows of the online softmax: the highest score so far (units of log 2) and the sum of 2^(s - highest).
struct SoftmaxRows {
  float highest[simt::kSide], total[simt::kSide];

  // Scores become probabilities; returns by how much what was summed before decays. 16 lanes hold a row.
  __device__ void add(simt::Accumulator& s, float (&decay)[simt::kSide]) {
#pragma unroll
    for (int i = 0; i < simt::kSide; i++) {
      float top = highest[i];
      for (float x : s.v[i]) top = fmaxf(top, x);
      top = warp_max<16>(top);
      const float base = top == -INFINITY ? 0 : top;  // nothing seen yet: every probability is 2^-inf = 0
      decay[i] = exp2f(highest[i] - base);
      float sum = 0;
      for (float& x : s.v[i]) {
        x = exp2f(x - base);
        sum += x;
      }
      total[i] = total[i] * decay[i] + warp_sum<16>(sum);
      highest[i] = top;
    }
  }
};

// One block a (tile of 64 queries, head). 4 T² D / 2 products a head (causal), all of them float32 FMA: bound by shared memory
// and FMA, not by the device's memory.
template <class T, int chunks>
__global__ void __launch_bounds__(simt::kThreads, chunks > 2 ? 1 : 2)
    attention_simt(ForwardOperands<T> x, AttentionShape s, AttentionPlan plan, AttentionChecks checks, float scale) {
  using namespace simt;
  SharedCarver carve = dynamic_shared();
  const ForwardTiles tiles(carve);
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x), head = static_cast<int>(blockIdx.y);  // long rows first
  const int first = tile * kNarrow, thread = static_cast<int>(threadIdx.x), row = first + kSide * (thread / 16);
  if (!check_call(plan, checks, first, kNarrow)) return;
  const Operand<T> q = head_of(x.q, s.queries, s.heads, head, s.size);
  const Operand<T> k = head_of(x.k, s.keys, s.kv_heads, head / s.group, s.size);
  const Operand<T> v = head_of(x.v, s.keys, s.kv_heads, head / s.group, s.size);
  const Bounds rows = plan.rows_of_tile(tile);
  int stream_index[kSide];
  SoftmaxRows softmax;
  Accumulator o[chunks];
#pragma unroll
  for (int i = 0; i < kSide; i++) {
    stream_index[i] = plan.rows[row + i];
    softmax.highest[i] = -INFINITY;
    softmax.total[i] = 0;
  }
  for (Accumulator& part : o) part.clear();

  const int32_t* list = plan.keys_of(tile / 2);
  for (int n = 0; n < list[0]; n++) {
    const int key_tile = list[1 + n], key = key_tile * kNarrow;
    const Seen state = seen(rows, key, kNarrow, plan.ends_of_tile(key_tile));
    if (state == Seen::kNone) continue;
    Accumulator scores;
    multiply_heads(scores, q, first, k, key, s.size, tiles.left, tiles.right);
#pragma unroll
    for (int i = 0; i < kSide; i++) {
#pragma unroll
      for (int j = 0; j < kSide; j++) {
        const int column = key + kSide * (thread % 16) + j;
        const bool sees = state == Seen::kAll || visible(stream_index[i], column, plan.ends[column]);
        scores.v[i][j] = sees ? scores.v[i][j] * scale : -INFINITY;
      }
    }
    float decay[kSide];
    softmax.add(scores, decay);
    store_transposed(tiles.p, scores);
#pragma unroll
    for (int c = 0; c < chunks; c++) {
      if (c * kTile >= s.size) break;
      for (int i = 0; i < kSide; i++)
        for (float& value : o[c].v[i]) value *= decay[i];
      __syncthreads();
      load_tile<false>(tiles.right, v, key, c * kTile, s.size);
      __syncthreads();
      multiply(o[c], tiles.p, tiles.right, kTile);
    }
  }

#pragma unroll
  for (int i = 0; i < kSide; i++) {
    if (row + i >= s.queries) break;
    const float total = softmax.total[i], inverse = total == 0 ? 0 : 1 / total;  // a query that sees nothing gets 0; NaN stays
    const int64_t at = static_cast<int64_t>(row + i) * s.heads + head;
#pragma unroll
    for (int c = 0; c < chunks; c++) {
      for (int j = 0; j < kSide; j++) {
        const int column = c * kTile + kSide * (thread % 16) + j;
        if (column < s.size) x.o[at * s.size + column] = from_float<T>(o[c].v[i][j] * inverse);
      }
    }
    if (x.lse && thread % 16 == 0) x.lse[at] = total == 0 ? -INFINITY : softmax.highest[i] * kLn2 + logf(total);
  }
}

template <class T, int chunks>
qt_status launch_simt(qt_stream* stream, const ForwardOperands<T>& x, const AttentionShape& s, const AttentionPlan& plan,
                      const AttentionChecks& checks, float scale) {
  return launch(attention_simt<T, chunks>, dim3(ceil_div(s.queries, kNarrow), s.heads), simt::kThreads,
                shared_bytes<ForwardTiles>(), stream, x, s, plan, checks, scale * kLog2E);
}

template <class T>
qt_status run(qt_stream* stream, const qt_attention_args* a, const AttentionShape& s, const AttentionPlan& plan,
              const AttentionChecks& checks) {
  const ForwardOperands<T> x{data_of<T>(a->o), data_of<float>(a->lse), data_of<const T>(a->q), data_of<const T>(a->k),
                             data_of<const T>(a->v)};
  const float scale = static_cast<float>(a->scale);
  const int chunks = ceil_div(s.size, simt::kTile);
  if (chunks <= 1) return launch_simt<T, 1>(stream, x, s, plan, checks, scale);
  if constexpr (std::is_same<T, float>::value) {
    if (chunks == 2) return launch_simt<T, 2>(stream, x, s, plan, checks, scale);
  }
  return launch_simt<T, 4>(stream, x, s, plan, checks, scale);
}

}  // namespace

qt_status attention(qt_stream* stream, const qt_attention_args* args) {
  const AttentionShape s = attention_shape(args->q, args->k);
  qt_status status = check_attention(stream, s, args->plan);
  if (status != QT_OK) return status;
  const AttentionPlan plan(data_of<int32_t>(args->plan), s.queries, s.keys);
  const AttentionChecks checks = attention_checks(stream, args->rows);
  if (args->scale > 0 && mma::copies_whole(args->q) && mma::copies_whole(args->k) && mma::copies_whole(args->v) &&
      mma::copies_whole(args->o)) {
    const mma::ForwardOperands x{data_of<bf16>(args->o), data_of<float>(args->lse), data_of<const bf16>(args->q),
                                 data_of<const bf16>(args->k), data_of<const bf16>(args->v)};
    return mma::forward(stream, x, s, plan, checks, static_cast<float>(args->scale));
  }
  return with_activation(args->q->dtype, [&](auto zero) { return run<decltype(zero)>(stream, args, s, plan, checks); });
}

}  // namespace quantune::cuda
