// attention_decode: one query a sequence over its prompt (blocks that sequences may share) and its generated tokens (slots of
// steps); flash decoding: runs of tokens in parallel, then their partial softmaxes merged. And kv_write, which fills the
// caches.
#include <climits>

#include "attention_decode_mma.cuh"
#include "kernels.h"

namespace quantune::cuda {
namespace decode {
namespace {

constexpr int kMostHeads = 8;  // query heads of a block of the SIMT form

// Float32, mixed dtypes, sizes that are no multiple of 8. One block a (run, key head and up to 8 of its query heads, sequence).
// Bound by memory where the group is small, else by shuffles.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) decode_simt(Operands<T, C> x, Shape s, Tables tables, Partials partials) {
  constexpr int kWarps = kThreads / kWarp, kParts = kMostParts;
  QT_SHARED(float, q, kMostHeads* kMostHeadSize);
  QT_SHARED(float, p, kMostHeads* kRun);
  QT_SHARED(int32_t, rows, kRun);
  const int index = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.z);
  const int pieces = ceil_div(s.group, kMostHeads), kv_head = static_cast<int>(blockIdx.y) / pieces;
  const int first = static_cast<int>(blockIdx.y) % pieces * kMostHeads;  // of the group
  const int heads = s.group - first < kMostHeads ? s.group - first : kMostHeads, head = kv_head * s.group + first;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), warp = warp_index();
  const Run run(s, tables, sequence, index);
  run.check(s, tables, sequence);
  if (run.count == 0) return;
  if (thread < kRun) rows[thread] = run.row(s, tables, sequence, thread);
  for (int i = thread; i < heads * s.size; i += kThreads) {
    q[i] = to_float(x.q[(static_cast<int64_t>(sequence) * s.heads + head) * s.size + i]);
  }
  __syncthreads();

  const int64_t stride = static_cast<int64_t>(s.kv_heads) * s.size, head_at = static_cast<int64_t>(kv_head) * s.size;
  const C *keys = (run.prompt ? x.k_cache : x.k_steps) + head_at, *values = (run.prompt ? x.v_cache : x.v_steps) + head_at;
  for (int i = warp; i < kRun; i += kWarps) {
    const int row = rows[i];
    float k[kParts];
#pragma unroll
    for (int n = 0; n < kParts; n++) {
      const int d = lane + kWarp * n;
      k[n] = row >= 0 && d < s.size ? to_float(keys[row * stride + d]) : 0.0f;
    }
    for (int h = 0; h < heads; h++) {
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kParts; n++) {
        const int d = lane + kWarp * n;
        if (d < s.size) sum = fmaf(k[n], q[h * s.size + d], sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) p[h * kRun + i] = row >= 0 ? sum * s.scale : -INFINITY;
    }
  }
  __syncthreads();
  for (int h = warp; h < heads; h += kWarps) {
    const float a = p[h * kRun + lane], b = p[h * kRun + kWarp + lane], highest = warp_max(fmaxf(a, b));
    const float base = highest == -INFINITY ? 0 : highest, low = exp2f(a - base), high = exp2f(b - base);
    const float total = warp_sum(low + high);
    p[h * kRun + lane] = low;
    p[h * kRun + kWarp + lane] = high;
    if (lane == 0) {
      partials.highest[Partials::at(s, sequence, index, head + h)] = highest;
      partials.total[Partials::at(s, sequence, index, head + h)] = total;
    }
  }
  __syncthreads();
  float* to = partials.o + Partials::at(s, sequence, index, head) * s.size;
  for (int i = thread; i < heads * s.size; i += kThreads) {
    float sum = 0;
#pragma unroll 8
    for (int n = 0; n < kRun; n++) {
      if (rows[n] >= 0) sum = fmaf(p[i / s.size * kRun + n], to_float(values[rows[n] * stride + i % s.size]), sum);
    }
    to[i] = sum;
  }
}

// One block a (head, sequence): warp w takes the runs w, w + 8, …; then the warps' sums are added in their order. Reads the
// partials once: D floats a run, against 2 D 64 elements that the run was made from.
template <class T>
__global__ void __launch_bounds__(256) decode_merge(T* o, Shape s, Tables tables, Partials partials) {
  constexpr int kWarps = 8;
  QT_SHARED(float, sums, kWarps* kMostHeadSize);
  QT_SHARED(float, totals, kWarps);
  QT_SHARED(float, tops, kWarps);
  const int head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y);
  const int lane = lane_index(), warp = warp_index();
  auto filled = [&](int run) { return Run(s, tables, sequence, run).count > 0; };
  float highest = -INFINITY;
  for (int run = static_cast<int>(threadIdx.x); run < s.runs(); run += kWarps * kWarp) {
    if (filled(run)) highest = fmaxf(highest, partials.highest[Partials::at(s, sequence, run, head)]);
  }
  highest = warp_max(highest);
  if (lane == 0) tops[warp] = highest;
  __syncthreads();
  for (int w = 0; w < kWarps; w++) highest = fmaxf(highest, tops[w]);
  const float base = highest == -INFINITY ? 0 : highest;

  float sum[kMostParts] = {}, total = 0;
  for (int run = warp; run < s.runs(); run += kWarps) {
    if (!filled(run)) continue;
    const int64_t at = Partials::at(s, sequence, run, head);
    const float weight = exp2f(partials.highest[at] - base);
    total = fmaf(partials.total[at], weight, total);
#pragma unroll
    for (int n = 0; n < kMostParts; n++) {
      const int d = lane + kWarp * n;
      if (d < s.size) sum[n] = fmaf(partials.o[at * s.size + d], weight, sum[n]);
    }
  }
  if (lane == 0) totals[warp] = total;
#pragma unroll
  for (int n = 0; n < kMostParts; n++) sums[warp * kMostHeadSize + lane + kWarp * n] = sum[n];
  __syncthreads();
  total = 0;
  for (int w = 0; w < kWarps; w++) total += totals[w];
  const float inverse = total == 0 ? 0 : 1 / total;  // a sequence without tokens gets 0; NaN stays NaN
  const int d = static_cast<int>(threadIdx.x);
  if (d >= s.size) return;
  float value = 0;
  for (int w = 0; w < kWarps; w++) value += sums[w * kMostHeadSize + d];
  o[(static_cast<int64_t>(sequence) * s.heads + head) * s.size + d] = from_float<T>(value * inverse);
}

template <class T, class C>
qt_status run_simt(qt_stream* stream, const Operands<T, C>& x, const Shape& s, const Tables& tables, const Partials& partials) {
  return launch(decode_simt<T, C>, dim3(s.runs(), s.kv_heads * ceil_div(s.group, kMostHeads), s.batch), kThreads, 0, stream, x,
                s, tables, partials);
}

template <class T, class C>
qt_status run(qt_stream* stream, const qt_attention_decode_args* a, const Shape& s, const Tables& tables) {
  const int64_t count = static_cast<int64_t>(s.batch) * s.runs() * s.heads;
  const Partials partials{stream->scratch_of<float>(count), stream->scratch_of<float>(count),
                          stream->scratch_of<float>(count * s.size)};
  if (count > 0 && (!partials.highest || !partials.total || !partials.o)) return stream->out_of_scratch();
  const Operands<T, C> x{data_of<T>(a->o),
                         data_of<const T>(a->q),
                         data_of<const C>(a->k_cache),
                         data_of<const C>(a->v_cache),
                         data_of<const C>(a->k_steps),
                         data_of<const C>(a->v_steps)};
  qt_status status = QT_OK;
  bool done = false;
  if constexpr (std::is_same<T, bf16>::value && std::is_same<C, bf16>::value) {
    bool whole = true;
    for (const qt_tensor* tensor : {a->q, a->k_cache, a->v_cache, a->k_steps, a->v_steps})
      whole = whole && mma::copies_whole(tensor);
    if (whole) status = run_mma(stream, x, s, tables, partials, done);
  }
  if (!done) status = run_simt(stream, x, s, tables, partials);
  if (status != QT_OK) return status;
  return launch(decode_merge<T>, dim3(s.heads, s.batch), 256, 0, stream, x.o, s, tables, partials);
}

}  // namespace
}  // namespace decode

qt_status attention_decode(qt_stream* stream, const qt_attention_decode_args* a) {
  decode::Shape s{};
  s.batch = static_cast<int>(a->q->shape[0]);
  s.heads = static_cast<int>(a->q->shape[1]);
  s.kv_heads = static_cast<int>(a->k_cache->shape[2]);
  s.group = s.heads / s.kv_heads;
  s.size = static_cast<int>(last_of(a->q));
  s.cache_blocks = static_cast<int>(a->k_cache->shape[0]);
  s.block_size = static_cast<int>(a->k_cache->shape[1]);
  s.max_blocks = static_cast<int>(last_of(a->block_table));
  s.max_steps = static_cast<int>(a->k_steps->shape[0]);
  s.slots = static_cast<int>(a->k_steps->shape[1]);
  s.same_steps = a->steps->elements == 1;
  s.scale = static_cast<float>(a->scale) * kLog2E;
  const int64_t prompt = static_cast<int64_t>(s.max_blocks) * s.block_size;
  const int64_t rows = a->k_cache->shape[0] * a->k_cache->shape[1], step_rows = a->k_steps->shape[0] * a->k_steps->shape[1];
  if (s.size > kMostHeadSize) {
    return stream->fail(QT_UNSUPPORTED, "attention serves head sizes up to %d, not %d", kMostHeadSize, s.size);
  }
  if (rows > INT_MAX || step_rows > INT_MAX || prompt > INT_MAX || s.batch > 65535) {
    return stream->fail(QT_UNSUPPORTED, "attention_decode serves caches of fewer than 2^31 tokens and up to 65535 sequences");
  }
  s.prompt_runs = static_cast<int>(ceil_div<int64_t>(prompt, decode::kRun));
  s.step_runs = ceil_div(s.max_steps, decode::kRun);
  const decode::Tables tables{data_of<const int32_t>(a->block_table),
                              data_of<const int32_t>(a->lengths),
                              data_of<const int32_t>(a->ancestors),
                              data_of<const int32_t>(a->steps),
                              stream->report("lengths[%lld] is %lld, expected 0 to %lld (the block table's tokens)"),
                              stream->report("block_table[%lld, %lld] is %lld, which is no block of the cache"),
                              stream->report("steps[%lld] is %lld, expected 0 to %lld (the steps of k_steps)"),
                              stream->report("ancestors[%lld, %lld] is %lld, which is no slot of a step")};
  return with_activation(a->q->dtype, [&](auto q_type) {
    return with_activation(a->k_cache->dtype, [&](auto cache_type) {
      return decode::run<decltype(q_type), decltype(cache_type)>(stream, a, s, tables);
    });
  });
}

// ---- kv_write ------------------------------------------------------------------------------------------------------------

namespace {

// One thread a piece of N elements of a token's keys and of its values: each read once and written once, bound by memory.
template <class C, class T, int N>
__global__ void __launch_bounds__(256) kv_write_kernel(C* k_cache, C* v_cache, const T* k, const T* v, const int32_t* slots,
                                                       int64_t tokens, int64_t cache_slots, int64_t width, Report bad_slot) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, pieces = width / N, token = at / pieces;
  if (token >= tokens) return;
  const int64_t slot = slots[token], column = at % pieces * N;
  if (slot < -1 || slot >= cache_slots) {
    bad_slot.raise(token, slot, cache_slots - 1);
    return;
  }
  if (slot < 0) return;
  const Pack<T, N> key = load_pack<N>(k + token * width + column), value = load_pack<N>(v + token * width + column);
  Pack<C, N> key_stored, value_stored;
#pragma unroll
  for (int i = 0; i < N; i++) {
    key_stored[i] = from_float<C>(to_float(key[i]));
    value_stored[i] = from_float<C>(to_float(value[i]));
  }
  store_pack<N>(k_cache + slot * width + column, key_stored);
  store_pack<N>(v_cache + slot * width + column, value_stored);
}

bool aligned(std::initializer_list<const qt_tensor*> tensors, size_t bytes) {
  for (const qt_tensor* x : tensors) {
    if (reinterpret_cast<uintptr_t>(x->data) % bytes != 0) return false;
  }
  return true;
}

}  // namespace

qt_status kv_write(qt_stream* stream, const qt_kv_write_args* a) {
  const int64_t tokens = a->slots->elements, slots = a->k_cache->shape[0] * a->k_cache->shape[1];
  const int64_t width = a->k_cache->shape[2] * a->k_cache->shape[3];
  const Report bad_slot = stream->report("slots[%lld] is %lld, expected -1 to %lld");
  return with_activation(a->k_cache->dtype, [&](auto cache_type) {
    return with_activation(a->k->dtype, [&](auto type) {
      using C = decltype(cache_type);
      using T = decltype(type);
      constexpr int N = 16 / (sizeof(C) > sizeof(T) ? sizeof(C) : sizeof(T));
      const bool whole = width % N == 0 && aligned({a->k_cache, a->v_cache, a->k, a->v}, 16);
      const int64_t threads = whole ? tokens * (width / N) : tokens * width;
      return launch(whole ? kv_write_kernel<C, T, N> : kv_write_kernel<C, T, 1>, ceil_div<int64_t>(threads, 256), 256, 0,
                    stream, data_of<C>(a->k_cache), data_of<C>(a->v_cache), data_of<const T>(a->k), data_of<const T>(a->v),
                    data_of<const int32_t>(a->slots), tokens, slots, width, bad_slot);
    });
  });
}

}  // namespace quantune::cuda
