// The head and its loss without the logits of all positions: rows that have targets are taken in chunks; a chunk's logits are
// computed, turned into losses and, in place, into dlogits = count * softmax - sum of one-hot targets, and multiplied on.
#include "elements.cuh"
#include "linear.cuh"

namespace quantune::cuda {
namespace {

constexpr int64_t kChunkBytes = 256 << 20, kLeastChunkRows = 128, kMostChunkRows = 2048;

int64_t rows_per_chunk(int64_t vocabulary) {
  const int64_t rows = kChunkBytes / (vocabulary * static_cast<int64_t>(sizeof(float))) / kLeastChunkRows * kLeastChunkRows;
  return rows < kLeastChunkRows ? kLeastChunkRows : rows < kMostChunkRows ? rows : kMostChunkRows;
}

// ---- distinct rows ---------------------------------------------------------------------------------------------------

// Distinct target rows, which only the device knows: row `rows[i]` has the targets [first[i], first[i + 1]), i < *count.
struct TargetRows {
  int32_t *rows, *first, *count;
};

struct TargetReports {
  Report row, target, order;
};

constexpr int kThreads = 1024;

// One block lists the rows, in their order, 1024 targets at a time. What is out of range is refused and counts as 0.
__global__ void __launch_bounds__(kThreads)
    list_rows_kernel(TargetRows out, const int32_t* rows, const int32_t* targets, int64_t n, int64_t row_limit,
                     int64_t vocabulary, TargetReports reports) {
  QT_SHARED(int, starts_by_warp, kThreads / kWarp);
  int listed = 0;
  for (int64_t start = 0; start < n; start += kThreads) {
    const int64_t i = start + threadIdx.x;
    bool begins = false;
    int32_t row = 0;
    if (i < n) {
      row = rows[i];
      if (row < 0 || row >= row_limit) reports.row.raise(i, row, row_limit);
      if (targets[i] < 0 || targets[i] >= vocabulary) reports.target.raise(i, targets[i], vocabulary);
      if (i > 0 && row < rows[i - 1]) reports.order.raise(i);
      begins = i == 0 || row != rows[i - 1];
    }
    const unsigned mask = __ballot_sync(kFullMask, begins);
    if (lane_index() == 0) starts_by_warp[warp_index()] = __popc(mask);
    __syncthreads();
    int at = listed + __popc(mask & ((1u << lane_index()) - 1));
    for (int w = 0; w < kThreads / kWarp; w++) {
      if (w < warp_index()) at += starts_by_warp[w];
      listed += starts_by_warp[w];
    }
    if (begins) {
      out.rows[at] = row < 0 || row >= row_limit ? 0 : row;
      out.first[at] = static_cast<int32_t>(i);
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  out.first[listed] = static_cast<int32_t>(n);
  *out.count = listed;
}

// Rows of x by the list: chunk row i is row rows[first + i], zeros past the last one. Bound by memory.
template <class T>
__global__ void __launch_bounds__(256)
    gather_chunk_kernel(T* chunk, const T* x, TargetRows target, int64_t first, int64_t width, bool aligned) {
  const int64_t i = first + blockIdx.x;
  const bool has_row = i < *target.count;
  const T* from = has_row ? x + target.rows[i] * width : nullptr;
  for (int64_t at = threadIdx.x * kEight; at < width; at += 256 * kEight) {
    Stored8<T> values{};
    if (has_row) values = load_stored8(from + at, width - at, aligned);
    store_stored8(chunk + blockIdx.x * width + at, values, width - at, aligned);
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    scatter_chunk_kernel(T* dx, const T* chunk, TargetRows target, int64_t first, int64_t width, bool aligned) {
  const int64_t i = first + blockIdx.x;
  if (i >= *target.count) return;
  T* to = dx + target.rows[i] * width;
  for (int64_t at = threadIdx.x * kEight; at < width; at += 256 * kEight)
    store_stored8(to + at, load_stored8(chunk + blockIdx.x * width + at, width - at, aligned), width - at, aligned);
}

// ---- losses and dlogits ----------------------------------------------------------------------------------------------

struct Softmax {
  float highest, sum;  // of e^(x - highest)
};

__device__ Softmax row_softmax(const float* logits, int64_t vocabulary, bool aligned) {
  float highest = -INFINITY, sum = 0;
  for (int64_t at = threadIdx.x * kEight; at < vocabulary; at += blockDim.x * kEight) {
    Float8 x = load8(logits + at, vocabulary - at, aligned);
    float top = highest;
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      if (i >= vocabulary - at) x.v[i] = -INFINITY;
      top = x.v[i] > top ? x.v[i] : top;
    }
    if (!(top > -INFINITY)) continue;
    sum *= expf(highest - top);
    highest = top;
#pragma unroll
    for (int i = 0; i < kEight; i++) sum += expf(x.v[i] - highest);
  }
  const float top = block_max(highest);
  return {top, block_sum(highest > -INFINITY ? sum * expf(highest - top) : 0.0f)};
}

// A block per row of a chunk. The gradient is written over the logits, as Gradient: a bfloat16 row begins where the float32 row
// did, and each stretch is read by all before any writes over it. Bound by memory: logits read twice, dlogits written once.
template <class Gradient>
__global__ void __launch_bounds__(kThreads)
    row_loss_kernel(float* chunk, float* losses, float* kept, TargetRows target, const int32_t* targets, int64_t first,
                    int64_t vocabulary, bool gradient, bool aligned) {
  const int64_t i = first + blockIdx.x;
  const bool has_row = i < *target.count;
  float* logits = chunk + blockIdx.x * vocabulary;
  Gradient* out = reinterpret_cast<Gradient*>(logits);
  const int64_t begin = has_row ? target.first[i] : 0, count = has_row ? target.first[i + 1] - begin : 0;
  Softmax softmax{0, 1};
  if (has_row) {
    softmax = row_softmax(logits, vocabulary, aligned);
    const float log_sum = softmax.highest + logf(softmax.sum);
    for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
      const int32_t token = targets[begin + j];
      const bool valid = token >= 0 && token < vocabulary;
      kept[begin + j] = valid ? logits[token] : NAN;
      losses[begin + j] = log_sum - kept[begin + j];
    }
  }
  if (!gradient) return;
  const float factor = static_cast<float>(count) / softmax.sum;
  for (int64_t start = 0; start < vocabulary; start += blockDim.x * kEight) {
    const int64_t at = start + threadIdx.x * kEight, rest = vocabulary - at;
    Float8 x{};
    if (rest > 0 && has_row) {
      x = load8(logits + at, rest, aligned);
#pragma unroll
      for (int j = 0; j < kEight; j++) x.v[j] = expf(x.v[j] - softmax.highest) * factor;
    }
    __syncthreads();
    if (rest > 0) store8(out + at, x, rest, aligned);
  }
  __syncthreads();
  // One subtraction for all targets of a token, from the value before it was rounded.
  for (int64_t j = threadIdx.x; j < count; j += blockDim.x) {
    const int32_t token = targets[begin + j];
    int64_t same = 0, before = 0;
    for (int64_t other = 0; other < count; other++) {
      same += targets[begin + other] == token;
      before += other < j && targets[begin + other] == token;
    }
    if (before == 0 && token >= 0 && token < vocabulary)
      out[token] = from_float<Gradient>(expf(kept[begin + j] - softmax.highest) * factor - static_cast<float>(same));
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    column_sums_kernel(float* out, const T* x, int64_t rows, int64_t columns, int64_t stride, bool accumulate) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (column >= columns) return;
  float sum = accumulate ? out[column] : 0.0f;
  for (int64_t row = 0; row < rows; row++) sum += to_float(x[row * stride + column]);
  out[column] = sum;
}

// ---- chunks ----------------------------------------------------------------------------------------------------------

// What one call keeps. The activations' type T is that of x, dx and dlogits: in bfloat16 all products run on tensor cores.
struct Call {
  const qt_linear_cross_entropy_args* args;
  Linear w;
  bool gradient;
  TargetRows target{};
  float *logits = nullptr, *kept = nullptr;                      // [rows, V]; [targets]: the targets' logits
  void *x = nullptr, *dx = nullptr, *h = nullptr, *t = nullptr;  // [rows, K] twice; [rows, r] twice
};

qt_status clear(qt_stream* stream, const qt_tensor* tensor) {
  if (!tensor) return QT_OK;
  const qt_fill_args args{tensor, 0.0};
  return fill(stream, &args);
}

// The gradients of `count` rows from `first` on; dlogits lie where the logits were, rows `stride` elements apart.
template <class T>
qt_status chunk_gradients(qt_stream* stream, const Call& call, int64_t first, int64_t count) {
  const auto* args = call.args;
  const Linear& w = call.w;
  const int32_t dtype = args->x->dtype;
  const int64_t stride = w.n * static_cast<int64_t>(sizeof(float) / sizeof(T));
  const Factor dy_rows = row_factor(call.logits, dtype, stride), dy_columns = column_factor(call.logits, dtype, stride);
  const Factor x_columns = column_factor(call.x, dtype, w.k);
  const Result t = result_of(call.t, dtype, w.rank(), false);
  const bool accumulate = first > 0, up = w.lora_a && (args->dx || args->d_lora_a);
  if (up && !args->dx)
    if (qt_status status = lora_up_gradient(stream, w, dy_rows, count, t)) return status;
  if (args->dx) {
    const Result dx = result_of(call.dx, dtype, w.k, false);
    if (qt_status status = linear_input_gradient(stream, w, dy_rows, up ? &t : nullptr, count, dx)) return status;
    const bool aligned = w.k % kEight == 0 && all_aligned(call.dx, args->dx->data);
    if (qt_status status = launch(scatter_chunk_kernel<T>, count, 256, 0, stream, data_of<T>(args->dx),
                                  static_cast<const T*>(call.dx), call.target, first, w.k, aligned))
      return status;
  }
  if (args->d_weight) {
    float* out = data_of<float>(args->d_weight);
    if (qt_status status = linear_weight_gradient(stream, w, x_columns, dy_columns, count, out, accumulate)) return status;
  }
  if (args->d_bias) {
    if (qt_status status =
            launch(column_sums_kernel<T>, ceil_div<int64_t>(w.n, 256), 256, 0, stream, data_of<float>(args->d_bias),
                   reinterpret_cast<const T*>(call.logits), count, w.n, stride, accumulate))
      return status;
  }
  GroupedProduct products[2];
  int grouped = 0;
  if (args->d_lora_a) {
    const Factor t_columns = column_factor(call.t, dtype, w.rank());
    products[grouped++] = lora_a_gradient(w, x_columns, t_columns, count, data_of<float>(args->d_lora_a), accumulate);
  }
  if (args->d_lora_b) {
    const Factor h_columns = column_factor(call.h, dtype, w.rank());
    products[grouped++] = lora_b_gradient(w, h_columns, dy_columns, count, data_of<float>(args->d_lora_b), accumulate);
  }
  return gemm_group(stream, products, grouped);
}

template <class T>
qt_status run_chunk(qt_stream* stream, const Call& call, int64_t first, int64_t count) {
  const auto* args = call.args;
  const Linear& w = call.w;
  const int32_t dtype = args->x->dtype;
  const bool aligned = w.k % kEight == 0 && all_aligned(call.x, args->x->data);
  if (qt_status status = launch(gather_chunk_kernel<T>, count, 256, 0, stream, static_cast<T*>(call.x),
                                data_of<const T>(args->x), call.target, first, w.k, aligned))
    return status;
  const Factor rows = row_factor(call.x, dtype, w.k);
  const Result logits = result_of(call.logits, QT_FLOAT32, w.n, false, args->bias),
               h = result_of(call.h, dtype, w.rank(), false);
  if (qt_status status = linear_forward(stream, w, rows, rows, count, logits, w.lora_a ? &h : nullptr)) return status;
  const int64_t wanted = ceil_div<int64_t>(w.n, kWarp * kEight) * kWarp, threads = wanted < kThreads ? wanted : kThreads;
  if (qt_status status = launch(row_loss_kernel<T>, count, dim3(static_cast<unsigned>(threads)), 0, stream, call.logits,
                                data_of<float>(args->losses), call.kept, call.target, data_of<const int32_t>(args->targets),
                                first, w.n, call.gradient, w.n % kEight == 0))
    return status;
  return call.gradient ? chunk_gradients<T>(stream, call, first, count) : QT_OK;
}

}  // namespace

qt_status linear_cross_entropy(qt_stream* stream, const qt_linear_cross_entropy_args* args) {
  const bool gradient = args->dx || args->d_weight || args->d_bias || args->d_lora_a || args->d_lora_b;
  const float lora_scale = static_cast<float>(args->lora_scale);
  Call call{args, Linear(args->weight, args->lora_a, args->lora_b, args->transposed != 0, lora_scale), gradient};
  const int64_t row_limit = row_count(args->x), n = args->targets->elements, most_rows = n < row_limit ? n : row_limit;
  if (qt_status status = clear(stream, args->dx)) return status;  // rows without a target
  if (most_rows == 0) {
    for (const qt_tensor* tensor : {args->d_weight, args->d_bias, args->d_lora_a, args->d_lora_b})
      if (qt_status status = clear(stream, tensor)) return status;
  }
  const int64_t limit = rows_per_chunk(call.w.n), rows = most_rows < limit ? most_rows : limit;
  const int64_t element = args->x->dtype == QT_FLOAT32 ? 4 : 2, rank = call.w.rank();
  call.target = {stream->scratch_of<int32_t>(n + 1), stream->scratch_of<int32_t>(n + 1), stream->scratch_of<int32_t>(1)};
  call.kept = stream->scratch_of<float>(n + 1);
  call.logits = stream->scratch_of<float>(rows * call.w.n + 1);
  call.x = stream->scratch(rows * call.w.k * element + 1);
  call.dx = stream->scratch((args->dx ? rows * call.w.k : 0) * element + 1);
  call.h = stream->scratch(rows * rank * element + 1);
  call.t = stream->scratch(rows * rank * element + 1);
  if (!call.target.rows || !call.target.first || !call.target.count || !call.kept || !call.logits || !call.x || !call.dx ||
      !call.h || !call.t)
    return stream->out_of_scratch();
  const TargetReports reports{stream->report("linear_cross_entropy: target_rows[%lld] is %lld, x has %lld rows"),
                              stream->report("linear_cross_entropy: targets[%lld] is %lld, the head has %lld rows"),
                              stream->report("linear_cross_entropy: target_rows is not ascending at %lld")};
  if (qt_status status =
          launch(list_rows_kernel, 1, kThreads, 0, stream, call.target, data_of<const int32_t>(args->target_rows),
                 data_of<const int32_t>(args->targets), n, row_limit, call.w.n, reports))
    return status;
  return with_activation(args->x->dtype, [&](auto zero) {
    for (int64_t first = 0; first < most_rows; first += rows) {
      const int64_t count = most_rows - first < rows ? most_rows - first : rows;
      if (qt_status status = run_chunk<decltype(zero)>(stream, call, first, count)) return status;
    }
    return QT_OK;
  });
}

}  // namespace quantune::cuda
