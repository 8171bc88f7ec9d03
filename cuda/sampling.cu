// Logits before a token is chosen: log-softmax, the processors of transformers' generate, argmax. Logits are [B, V] float32.
#include "elements.cuh"

namespace quantune::cuda {
namespace {

// A row is cut into slices, so that the few long rows of a decode step occupy the whole device: a first kernel leaves what it
// found of each slice, a second one puts the slices of a row together.
constexpr int kThreads = 256;
constexpr int kVectors = 4;
constexpr int64_t kSlice = kThreads * kEight * kVectors;

struct SliceSum {
  float highest, sum;  // sum of e^(x - highest)
};

__global__ void __launch_bounds__(kThreads)
    slice_sums_kernel(SliceSum* sums, const float* logits, int64_t width, bool aligned) {
  const float* row = logits + blockIdx.y * width;
  const int64_t first = blockIdx.x * kSlice + threadIdx.x * kEight;
  Float8 x[kVectors];
  float highest = -INFINITY;
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    const int64_t at = first + v * kThreads * kEight, rest = width - at;
    if (rest > 0) x[v] = load8(row + at, rest, aligned);
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      if (i >= rest) x[v].v[i] = -INFINITY;
      highest = x[v].v[i] > highest ? x[v].v[i] : highest;
    }
  }
  highest = block_max(highest);
  float sum = 0;
  if (highest > -INFINITY) {
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
#pragma unroll
      for (int i = 0; i < kEight; i++)
        if (i < width - first - v * kThreads * kEight) sum += expf(x[v].v[i] - highest);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = {highest, sum};
}

// y = x - log Σ e^x. A row of nothing but -inf has the sum -inf. Bound by memory, as is the kernel before it: x is read twice
// (the second time from the cache when it is a decode step's), y written once.
__global__ void __launch_bounds__(kThreads)
    log_softmax_kernel(float* y, const float* x, const SliceSum* sums, int64_t width, bool aligned) {
  float highest = -INFINITY, sum = 0;
  const SliceSum* slices = sums + static_cast<int64_t>(blockIdx.y) * gridDim.x;
  for (int s = lane_index(); s < static_cast<int>(gridDim.x); s += kWarp) highest = fmaxf(highest, slices[s].highest);
  highest = warp_max(highest);
  for (int s = lane_index(); s < static_cast<int>(gridDim.x); s += kWarp)
    if (slices[s].highest > -INFINITY) sum += slices[s].sum * expf(slices[s].highest - highest);
  const float total = highest > -INFINITY ? highest + logf(warp_sum(sum)) : highest;
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    const int64_t at = blockIdx.x * kSlice + (v * kThreads + threadIdx.x) * kEight, rest = width - at;
    if (rest <= 0) continue;
    Float8 values = load8(x + blockIdx.y * width + at, rest, aligned);
#pragma unroll
    for (int i = 0; i < kEight; i++) values.v[i] -= total;
    store8(y + blockIdx.y * width + at, values, rest, aligned);
  }
}

// ---- argmax ----------------------------------------------------------------------------------------------------------

struct Best {
  float value;
  int64_t index;  // INT64_MAX: nothing but NaN so far
};

__device__ Best better_of(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a; }

// Every thread gets the best of the block's.
__device__ Best block_best(Best best) {
  QT_SHARED(float, values, kWarp);
  QT_SHARED(int64_t, indices, kWarp);
  auto of_warp = [](Best x) {
    for (int step = kWarp / 2; step > 0; step /= 2)
      x = better_of(x, {__shfl_xor_sync(kFullMask, x.value, step), __shfl_xor_sync(kFullMask, x.index, step)});
    return x;
  };
  best = of_warp(best);
  if (lane_index() == 0) {
    values[warp_index()] = best.value;
    indices[warp_index()] = best.index;
  }
  __syncthreads();
  const int from = lane_index() < static_cast<int>(blockDim.x) / kWarp ? lane_index() : 0;
  return of_warp({values[from], indices[from]});
}

__global__ void __launch_bounds__(kThreads) slice_best_kernel(Best* bests, const float* logits, int64_t width, bool aligned) {
  const float* row = logits + blockIdx.y * width;
  Best best{-INFINITY, INT64_MAX};
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    const int64_t at = blockIdx.x * kSlice + (v * kThreads + threadIdx.x) * kEight, rest = width - at;
    if (rest <= 0) continue;
    const Float8 x = load8(row + at, rest, aligned);
#pragma unroll
    for (int i = 0; i < kEight; i++)
      if (i < rest) best = better_of(best, {x.v[i], at + i});
  }
  best = block_best(best);
  if (threadIdx.x == 0) bests[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

__global__ void __launch_bounds__(kWarp)
    argmax_kernel(int32_t* tokens, float* values, const float* logits, const Best* bests, int64_t slices, int64_t width) {
  Best best{-INFINITY, INT64_MAX};
  for (int64_t s = threadIdx.x; s < slices; s += kWarp) best = better_of(best, bests[blockIdx.x * slices + s]);
  best = block_best(best);
  if (threadIdx.x != 0) return;
  const int64_t token = best.index < width ? best.index : 0;
  tokens[blockIdx.x] = static_cast<int32_t>(token);
  if (values) values[blockIdx.x] = logits[blockIdx.x * width + token];
}

// ---- processors ------------------------------------------------------------------------------------------------------

__device__ void set_logit(float* logit, float value) {  // several threads may write the same value to one place
  atomicExch(reinterpret_cast<unsigned int*>(logit), __float_as_uint(value));
}

// Positive logits are divided, negative ones multiplied; reading all before writing any gives each distinct token one penalty.
// Then every token that would complete an n-gram that the history already has is banned. What is no column of the logits
// (padding below 0, tokens that the head does not have) cannot be generated: it stands in n-grams and changes no logit. One
// block a row; bound by latency: three dependent accesses.
__global__ void __launch_bounds__(kThreads)
    logits_process_kernel(float* logits, const int32_t* histories, const int32_t* lengths, float* penalized, float penalty,
                          int64_t ngram, int64_t width, int64_t columns, Report report) {
  const int64_t row = blockIdx.x, length = lengths[row];
  if (length < 0 || length > columns) {
    if (threadIdx.x == 0) report.raise(row, length, columns);
    return;
  }
  float* x = logits + row * width;
  float* of_row = penalized + row * columns;
  const int32_t* history = histories + row * columns;
  auto generable = [&](int64_t i) { return history[i] >= 0 && history[i] < width; };
  if (penalty != 1) {
    for (int64_t i = threadIdx.x; i < length; i += kThreads) {
      if (!generable(i)) continue;
      const float logit = x[history[i]];
      of_row[i] = logit > 0 ? logit / penalty : logit * penalty;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < length; i += kThreads)
      if (generable(i)) set_logit(x + history[i], of_row[i]);
    __syncthreads();
  }
  if (ngram <= 0) return;
  const int32_t* last = history + length - (ngram - 1);
  for (int64_t i = threadIdx.x; i + ngram <= length; i += kThreads) {
    int64_t same = 0;
    while (same < ngram - 1 && history[i + same] == last[same]) same++;
    if (same == ngram - 1 && generable(i + ngram - 1)) set_logit(x + history[i + ngram - 1], -INFINITY);
  }
}

__global__ void __launch_bounds__(kThreads)
    suppress_tokens_kernel(float* logits, const int32_t* ids, int64_t count, int64_t width, Report report) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  if (ids[i] >= 0 && ids[i] < width)
    set_logit(logits + blockIdx.y * width + ids[i], -INFINITY);
  else
    report.raise(i, ids[i], width - 1);
}

// A grid of slices by rows, which are 65535 at most.
template <class Start>
qt_status by_rows(int64_t rows, int64_t x, const Start& start) {
  for (int64_t first = 0; first < rows; first += 65535) {
    const int64_t count = rows - first < 65535 ? rows - first : 65535;
    qt_status status = start(first, dim3(static_cast<unsigned>(x), static_cast<unsigned>(count)));
    if (status != QT_OK) return status;
  }
  return QT_OK;
}

}  // namespace

qt_status log_softmax(qt_stream* stream, const qt_log_softmax_args* args) {
  const int64_t width = last_of(args->x), rows = width ? args->x->elements / width : 0, slices = ceil_div(width, kSlice);
  SliceSum* sums = stream->scratch_of<SliceSum>(rows * slices + 1);
  if (!sums) return stream->out_of_scratch();
  const float* x = data_of<const float>(args->x);
  float* y = data_of<float>(args->y);
  const bool aligned = width % kEight == 0 && all_aligned(x, y);
  return by_rows(rows, slices, [&](int64_t first, dim3 grid) {
    SliceSum* of_rows = sums + first * slices;
    qt_status status = launch(slice_sums_kernel, grid, kThreads, 0, stream, of_rows, x + first * width, width, aligned);
    if (status != QT_OK) return status;
    return launch(log_softmax_kernel, grid, kThreads, 0, stream, y + first * width, x + first * width, of_rows, width, aligned);
  });
}

qt_status logits_process(qt_stream* stream, const qt_logits_process_args* args) {
  const int64_t width = last_of(args->logits), rows = rows_of(args->logits), columns = last_of(args->history);
  if (!(static_cast<float>(args->repetition_penalty) > 0)) {
    return stream->fail(QT_INVALID_ARGUMENT, "repetition_penalty is %g, expected more than 0", args->repetition_penalty);
  }
  float* penalized = stream->scratch_of<float>(rows * columns + 1);
  if (!penalized) return stream->out_of_scratch();
  const Report report = stream->report("lengths[%lld] is %lld, expected 0 to %lld (the columns of history)");
  return launch(logits_process_kernel, rows, kThreads, 0, stream, data_of<float>(args->logits),
                data_of<const int32_t>(args->history), data_of<const int32_t>(args->lengths), penalized,
                args->repetition_penalty, args->no_repeat_ngram_size, width, columns, report);
}

qt_status suppress_tokens(qt_stream* stream, const qt_suppress_tokens_args* args) {
  const int64_t width = last_of(args->logits), rows = rows_of(args->logits), count = args->ids->elements;
  const Report report = stream->report("ids[%lld] is %lld, expected 0 to %lld");
  return by_rows(rows, ceil_div<int64_t>(count, kThreads), [&](int64_t first, dim3 grid) {
    return launch(suppress_tokens_kernel, grid, kThreads, 0, stream, data_of<float>(args->logits) + first * width,
                  data_of<const int32_t>(args->ids), count, width, report);
  });
}

qt_status argmax(qt_stream* stream, const qt_argmax_args* args) {
  const int64_t width = last_of(args->logits), rows = rows_of(args->logits), slices = ceil_div(width, kSlice);
  Best* bests = stream->scratch_of<Best>(rows * slices + 1);
  if (!bests) return stream->out_of_scratch();
  const float* logits = data_of<const float>(args->logits);
  const bool aligned = width % kEight == 0 && all_aligned(logits);
  qt_status status = by_rows(rows, slices, [&](int64_t first, dim3 grid) {
    return launch(slice_best_kernel, grid, kThreads, 0, stream, bests + first * slices, logits + first * width, width, aligned);
  });
  if (status != QT_OK) return status;
  return launch(argmax_kernel, rows, kWarp, 0, stream, data_of<int32_t>(args->tokens), data_of<float>(args->values), logits,
                bests, slices, width);
}

}  // namespace quantune::cuda
