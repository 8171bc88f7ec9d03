// RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016), forward and backward. x is [M, K]; statistics in float32.
// Both are y = (x - mean) rstd w + b, with mean 0 for RMSNorm, and share their kernels.
#include "elements.cuh"

namespace quantune::cuda {
namespace {

// A row belongs to a group of threads: one warp (several rows a block) or a whole block. Each thread keeps its part of the row
// in registers, kKeep times eight elements; wider rows are read again, from the nearest cache.
constexpr int kKeep = 4;
constexpr int kRowsPerBlock = 4;   // with one warp a row
constexpr int kMostThreads = 512;  // of a group

struct Group {
  int threads, rank;
  int64_t row;

  __device__ Group() {
    const bool warps = blockDim.y > 1;
    threads = static_cast<int>(blockDim.x);
    rank = static_cast<int>(threadIdx.x);
    row = static_cast<int64_t>(blockIdx.x) * (warps ? kRowsPerBlock : 1) + threadIdx.y;
  }
  __device__ float sum(float value) const { return blockDim.y > 1 ? warp_sum(value) : block_sum(value); }
};

dim3 group_block(int64_t width) {
  if (width <= kWarp * kEight * kKeep) return dim3(kWarp, kRowsPerBlock);
  const int64_t threads = ceil_div<int64_t>(ceil_div<int64_t>(width, kEight * kKeep), kWarp) * kWarp;
  return dim3(static_cast<unsigned>(threads < kMostThreads ? threads : kMostThreads), 1);
}
int64_t group_blocks(int64_t rows, dim3 block) { return ceil_div<int64_t>(rows, block.y > 1 ? kRowsPerBlock : 1); }

// One thread's part of a row.
template <class T>
struct RowPart {
  const T* row;
  int64_t width;
  bool aligned;
  Float8 kept[kKeep];

  __device__ RowPart(const T* row, int64_t width, const Group& group, bool aligned) : row(row), width(width), aligned(aligned) {
#pragma unroll
    for (int v = 0; v < kKeep; v++) {
      const int64_t at = static_cast<int64_t>(v * group.threads + group.rank) * kEight;
      kept[v] = at < width ? load8(row + at, width - at, aligned) : Float8{};
    }
  }
  // f(first element, how many are left in the row, eight values); what is past the end of the row is 0.
  template <class F>
  __device__ void each(const Group& group, const F& f) const {
#pragma unroll
    for (int v = 0; v < kKeep; v++) {
      const int64_t at = static_cast<int64_t>(v * group.threads + group.rank) * kEight;
      if (at < width) f(at, width - at, kept[v]);
    }
    const int64_t step = static_cast<int64_t>(group.threads) * kEight;
    for (int64_t at = kKeep * step + group.rank * kEight; at < width; at += step)
      f(at, width - at, load8(row + at, width - at, aligned));
  }
};

// A weight or bias of the width of a row; absent means `otherwise`.
struct Columns {
  const void* data;
  int32_t dtype;

  __device__ Float8 load(int64_t at, int64_t rest, bool aligned, float otherwise) const {
    if (data) return load8(data, dtype, at, rest, aligned);
    Float8 x;
#pragma unroll
    for (int i = 0; i < kEight; i++) x.v[i] = otherwise;
    return x;
  }
};

Columns columns(const qt_tensor* tensor) {
  return tensor ? Columns{tensor->data, tensor->dtype} : Columns{nullptr, QT_FLOAT32};
}

// Bound by memory: x once, y once; weight and bias come from the caches.
template <class T, bool centered>
__global__ void __launch_bounds__(kMostThreads)
    norm_kernel(T* y, float* mean_out, float* rstd_out, const T* x, Columns weight, Columns bias, float eps, int64_t rows,
                int64_t width, bool aligned) {
  const Group group;
  if (group.row >= rows) return;  // a whole warp, or no thread of the block
  const RowPart<T> part(x + group.row * width, width, group, aligned);
  float mean = 0;
  if (centered) {
    float sum = 0;
    part.each(group, [&](int64_t, int64_t, const Float8& v) {
#pragma unroll
      for (int i = 0; i < kEight; i++) sum += v.v[i];
    });
    mean = group.sum(sum) / static_cast<float>(width);
  }
  float squares = 0;
  part.each(group, [&](int64_t, int64_t rest, const Float8& v) {
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      const float d = v.v[i] - mean;
      if (i < rest) squares = fmaf(d, d, squares);
    }
  });
  const float rstd = 1.0f / sqrtf(group.sum(squares) / static_cast<float>(width) + eps);
  if (group.rank == 0 && mean_out) mean_out[group.row] = mean;
  if (group.rank == 0 && rstd_out) rstd_out[group.row] = rstd;
  part.each(group, [&](int64_t at, int64_t rest, Float8 v) {
    const Float8 w = weight.load(at, rest, aligned, 1.0f), b = bias.load(at, rest, aligned, 0.0f);
#pragma unroll
    for (int i = 0; i < kEight; i++) v.v[i] = centered ? fmaf((v.v[i] - mean) * rstd, w.v[i], b.v[i]) : v.v[i] * rstd * w.v[i];
    store8(y + group.row * width + at, v, rest, aligned);
  });
}

// dx = rstd (g - mean(g) - x̂ mean(g x̂)) with g = dy w and x̂ = (x - mean) rstd; RMSNorm has no mean(g).
// Bound by memory: dy and x once (and dx when it is added to), dx once.
template <class T, bool centered>
__global__ void __launch_bounds__(kMostThreads)
    norm_dx_kernel(T* dx, const T* dy, const T* x, Columns weight, const float* means, const float* rstds, int64_t rows,
                   int64_t width, bool accumulate, bool aligned) {
  const Group group;
  if (group.row >= rows) return;
  const float mean = centered ? means[group.row] : 0.0f, rstd = rstds[group.row];
  const T* x_row = x + group.row * width;
  const RowPart<T> part(dy + group.row * width, width, group, aligned);
  auto gradient = [&](int64_t at, int64_t rest, const Float8& d, Float8* xhat) {
    const Float8 values = load8(x_row + at, rest, aligned);
    Float8 g = weight.load(at, rest, aligned, 1.0f);
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      g.v[i] *= d.v[i];
      xhat->v[i] = (values.v[i] - mean) * rstd;
    }
    return g;
  };
  float g_sum = 0, gx_sum = 0;
  part.each(group, [&](int64_t at, int64_t rest, const Float8& d) {
    Float8 xhat;
    const Float8 g = gradient(at, rest, d, &xhat);  // 0 past the end, as d is
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      g_sum += g.v[i];
      gx_sum = fmaf(g.v[i], xhat.v[i], gx_sum);
    }
  });
  const float g_mean = centered ? group.sum(g_sum) / static_cast<float>(width) : 0.0f;
  const float gx_mean = group.sum(gx_sum) / static_cast<float>(width);
  T* dx_row = dx + group.row * width;
  part.each(group, [&](int64_t at, int64_t rest, const Float8& d) {
    Float8 xhat, before{};
    Float8 g = gradient(at, rest, d, &xhat);
    if (accumulate) before = load8(dx_row + at, rest, aligned);
#pragma unroll
    for (int i = 0; i < kEight; i++) g.v[i] = fmaf(g.v[i] - g_mean - xhat.v[i] * gx_mean, rstd, before.v[i]);
    store8(dx_row + at, g, rest, aligned);
  });
}

// ---- gradients of weight and bias ------------------------------------------------------------------------------------

constexpr int kColumns = 32, kRowLanes = 8, kRowsPerPart = 256;

// partial[part, 0 or 1, column]: what kRowsPerPart rows give the weight and the bias. A block takes 32 columns, its eight warps
// every eighth row. Bound by memory: dy and x once, in runs of 32 elements.
template <class T>
__global__ void __launch_bounds__(kColumns* kRowLanes)
    norm_columns_kernel(float* partial, const T* dy, const T* x, const float* means, const float* rstds, int64_t rows,
                        int64_t width) {
  QT_SHARED(float, sums, 2 * kRowLanes * kColumns);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRowsPerPart;
  const int64_t end = first + kRowsPerPart < rows ? first + kRowsPerPart : rows;
  float of_weight = 0, of_bias = 0;
  if (column < width) {
    for (int64_t row = first + threadIdx.y; row < end; row += kRowLanes) {
      const float d = to_float(dy[row * width + column]), mean = means ? means[row] : 0.0f;
      of_weight = fmaf(d, (to_float(x[row * width + column]) - mean) * rstds[row], of_weight);
      of_bias += d;
    }
  }
  sums[threadIdx.y * kColumns + threadIdx.x] = of_weight;
  sums[(kRowLanes + threadIdx.y) * kColumns + threadIdx.x] = of_bias;
  __syncthreads();
  if (threadIdx.y > 1 || column >= width) return;
  float total = 0;
  for (int lane = 0; lane < kRowLanes; lane++) total += sums[(threadIdx.y * kRowLanes + lane) * kColumns + threadIdx.x];
  partial[(static_cast<int64_t>(blockIdx.y) * 2 + threadIdx.y) * width + column] = total;
}

__global__ void norm_add_parts_kernel(float* d_weight, float* d_bias, const float* partial, int64_t parts, int64_t width) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= width) return;
  float* out = blockIdx.y ? d_bias : d_weight;
  if (!out) return;
  float total = 0;
  for (int64_t part = 0; part < parts; part++) total += partial[(part * 2 + blockIdx.y) * width + column];
  out[column] += total;
}

struct Backward {
  const qt_tensor *dx, *d_weight, *d_bias, *dy, *x, *weight, *mean, *rstd;
  bool accumulate;
};

template <class T, bool centered>
qt_status norm_backward(qt_stream* stream, const Backward& a) {
  const int64_t width = last_of(a.x), rows = width ? a.x->elements / width : 0;
  const T *dy = data_of<const T>(a.dy), *x = data_of<const T>(a.x);
  const float *mean = data_of<const float>(a.mean), *rstd = data_of<const float>(a.rstd);
  if (a.dx) {
    const dim3 block = group_block(width);
    const bool aligned = width % kEight == 0 && all_aligned(a.dx->data, a.dy->data, a.x->data, a.weight->data);
    qt_status status = launch(norm_dx_kernel<T, centered>, group_blocks(rows, block), block, 0, stream, data_of<T>(a.dx), dy, x,
                              columns(a.weight), mean, rstd, rows, width, a.accumulate, aligned);
    if (status != QT_OK) return status;
  }
  const int64_t parts = ceil_div<int64_t>(rows, kRowsPerPart);
  if ((!a.d_weight && !a.d_bias) || parts == 0) return QT_OK;
  float* partial = stream->scratch_of<float>(parts * 2 * width);
  if (!partial) return stream->out_of_scratch();
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(width, kColumns)), static_cast<unsigned>(parts));
  qt_status status =
      launch(norm_columns_kernel<T>, grid, dim3(kColumns, kRowLanes), 0, stream, partial, dy, x, mean, rstd, rows, width);
  if (status != QT_OK) return status;
  return launch(norm_add_parts_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(width, 128)), 2), 128, 0, stream,
                data_of<float>(a.d_weight), data_of<float>(a.d_bias), partial, parts, width);
}

}  // namespace

qt_status rms_norm(qt_stream* stream, const qt_rms_norm_args* args) {
  const int64_t width = last_of(args->x), rows = width ? args->x->elements / width : 0;
  const dim3 block = group_block(width);
  const bool aligned = width % kEight == 0 && all_aligned(args->y->data, args->x->data, args->weight->data);
  return with_activation(args->x->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(norm_kernel<T, false>, group_blocks(rows, block), block, 0, stream, data_of<T>(args->y), nullptr,
                  data_of<float>(args->rstd), data_of<const T>(args->x), columns(args->weight), columns(nullptr), args->eps,
                  rows, width, aligned);
  });
}

qt_status layer_norm(qt_stream* stream, const qt_layer_norm_args* args) {
  const int64_t width = last_of(args->x), rows = width ? args->x->elements / width : 0;
  const dim3 block = group_block(width);
  const bool aligned = width % kEight == 0 &&
                       all_aligned(args->y->data, args->x->data, args->weight->data, args->bias ? args->bias->data : nullptr);
  return with_activation(args->x->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(norm_kernel<T, true>, group_blocks(rows, block), block, 0, stream, data_of<T>(args->y),
                  data_of<float>(args->mean), data_of<float>(args->rstd), data_of<const T>(args->x), columns(args->weight),
                  columns(args->bias), args->eps, rows, width, aligned);
  });
}

qt_status rms_norm_backward(qt_stream* stream, const qt_rms_norm_backward_args* args) {
  const Backward a{args->dx,   args->d_weight,       nullptr, args->dy, args->x, args->weight, nullptr,
                   args->rstd, args->accumulate != 0};
  return with_activation(args->x->dtype, [&](auto zero) { return norm_backward<decltype(zero), false>(stream, a); });
}

qt_status layer_norm_backward(qt_stream* stream, const qt_layer_norm_backward_args* args) {
  const Backward a{args->dx,   args->d_weight, args->d_bias,         args->dy, args->x, args->weight,
                   args->mean, args->rstd,     args->accumulate != 0};
  return with_activation(args->x->dtype, [&](auto zero) { return norm_backward<decltype(zero), true>(stream, a); });
}

}  // namespace quantune::cuda
