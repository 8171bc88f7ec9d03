// RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016), forward and backward. x is [M, K]; statistics in float32.
#include <cmath>

#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

template <class T>
float row_sum(const T* x, int64_t width) {
  Vec total = Vec::zero();
  for_each_vec(width, [&](int64_t i, int n) { total = total + load(x + i, n); });
  return reduce_add(total);
}

// The sum of (x - mean)²; lanes past the end must not count.
template <class T>
float row_square_sum(const T* x, float mean, int64_t width) {
  Vec total = Vec::zero(), center = Vec::broadcast(mean);
  int64_t whole = width - width % Vec::width;
  for_each_vec(whole, [&](int64_t i, int) {
    Vec d = Vec::load(x + i) - center;
    total = fma(d, d, total);
  });
  float sum = reduce_add(total);
  for (int64_t i = whole; i < width; i++) sum += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
  return sum;
}

// Both norms are y = (x - mean) rstd w + b with mean 0 for RMSNorm, and share one backward:
// dx = rstd (g - mean(g) - x̂ mean(g x̂)) with g = dy w and x̂ = (x - mean) rstd; RMSNorm has no mean(g).
struct Backward {
  const qt_tensor *dx, *d_weight, *d_bias, *dy, *x, *weight, *mean, *rstd;
  bool accumulate;
};

template <class T>
void backward_row(const Backward& a, const float* weight, int64_t row, int64_t width, float* d_weight, float* d_bias) {
  const T* dy = data_of<const T>(a.dy) + row * width;
  const T* x = data_of<const T>(a.x) + row * width;
  const float center = a.mean ? data_of<const float>(a.mean)[row] : 0.0f, rstd = data_of<const float>(a.rstd)[row];
  const Vec c = Vec::broadcast(center), r = Vec::broadcast(rstd);
  Vec g_sum = Vec::zero(), gx_sum = Vec::zero();
  // dy and weight are 0 in the lanes past the end, so x̂'s value there does not matter.
  for_each_vec(width, [&](int64_t i, int n) {
    Vec d = load(dy + i, n), xhat = (load(x + i, n) - c) * r, g = d * load(weight + i, n);
    g_sum = g_sum + g;
    gx_sum = fma(g, xhat, gx_sum);
    if (d_weight) store(fma(d, xhat, load(d_weight + i, n)), d_weight + i, n);
    if (d_bias) store(d + load(d_bias + i, n), d_bias + i, n);
  });
  if (!a.dx) return;
  T* dx = data_of<T>(a.dx) + row * width;
  const Vec g_mean = Vec::broadcast(a.mean ? reduce_add(g_sum) / static_cast<float>(width) : 0.0f);
  const Vec gx_mean = Vec::broadcast(reduce_add(gx_sum) / static_cast<float>(width));
  for_each_vec(width, [&](int64_t i, int n) {
    Vec xhat = (load(x + i, n) - c) * r, g = load(dy + i, n) * load(weight + i, n);
    Vec d = (g - g_mean - xhat * gx_mean) * r;
    if (a.accumulate) d = d + load(dx + i, n);
    store(d, dx + i, n);
  });
}

// The gradients of weight and bias are summed over blocks of kRows rows, then over the blocks in their order.
template <class T>
qt_status norm_backward(qt_stream* stream, const Backward& a) {
  constexpr int64_t kRows = 32;
  const int64_t width = last_of(a.x), rows = width ? a.x->elements / width : 0, blocks = ceil_div(rows, kRows);
  const int64_t parts = (a.d_weight ? 1 : 0) + (a.d_bias ? 1 : 0);
  const float* weight = as_float32(stream, a.weight);
  float* partial = parts ? stream->scratch_of<float>(blocks * parts * width + 1) : nullptr;
  if (!weight || (parts && !partial)) return out_of_scratch(stream);
  stream->parallel_for(blocks, [&](int64_t block) {
    float* d_weight = a.d_weight ? partial + block * parts * width : nullptr;
    float* d_bias = a.d_bias ? partial + (block * parts + parts - 1) * width : nullptr;
    if (parts) std::memset(partial + block * parts * width, 0, parts * width * sizeof(float));
    for (int64_t row = block * kRows; row < least(rows, (block + 1) * kRows); row++) {
      backward_row<T>(a, weight, row, width, d_weight, d_bias);
    }
  });
  auto add_up = [&](const qt_tensor* gradient, int64_t part) {
    float* out = data_of<float>(gradient);
    for_chunks(stream, width, 256, [&](int64_t begin, int64_t end) {
      for (int64_t block = 0; block < blocks; block++) {
        const float* from = partial + (block * parts + part) * width;
        for_vectors(begin, end, [&](int64_t i, int n) { store(load(out + i, n) + load(from + i, n), out + i, n); });
      }
    });
  };
  if (a.d_weight) add_up(a.d_weight, 0);
  if (a.d_bias) add_up(a.d_bias, parts - 1);
  return QT_OK;
}

}  // namespace

qt_status rms_norm(qt_stream* stream, const qt_rms_norm_args* args) {
  const int64_t width = last_of(args->x), rows = width ? args->x->elements / width : 0;
  const float* weight = as_float32(stream, args->weight);
  if (!weight) return out_of_scratch(stream);
  return with_activation(stream, args->x->dtype, [&](auto zero) {
    using T = decltype(zero);
    for_chunks(stream, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const T* x = data_of<const T>(args->x) + row * width;
        T* y = data_of<T>(args->y) + row * width;
        float rstd = 1.0f / sqrtf(row_square_sum(x, 0.0f, width) / static_cast<float>(width) + static_cast<float>(args->eps));
        if (args->rstd) data_of<float>(args->rstd)[row] = rstd;
        const Vec r = Vec::broadcast(rstd);
        for_each_vec(width, [&](int64_t i, int n) { store(load(x + i, n) * r * load(weight + i, n), y + i, n); });
      }
    });
    return QT_OK;
  });
}

qt_status rms_norm_backward(qt_stream* stream, const qt_rms_norm_backward_args* args) {
  const Backward a{args->dx,   args->d_weight,       nullptr, args->dy, args->x, args->weight, nullptr,
                   args->rstd, args->accumulate != 0};
  return with_activation(stream, args->x->dtype, [&](auto zero) { return norm_backward<decltype(zero)>(stream, a); });
}

qt_status layer_norm(qt_stream* stream, const qt_layer_norm_args* args) {
  const int64_t width = last_of(args->x), rows = width ? args->x->elements / width : 0;
  const float* weight = as_float32(stream, args->weight);
  const float* bias = args->bias ? as_float32(stream, args->bias) : nullptr;
  if (!weight || (args->bias && !bias)) return out_of_scratch(stream);
  return with_activation(stream, args->x->dtype, [&](auto zero) {
    using T = decltype(zero);
    for_chunks(stream, rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const T* x = data_of<const T>(args->x) + row * width;
        T* y = data_of<T>(args->y) + row * width;
        const float mean = row_sum(x, width) / static_cast<float>(width);
        float rstd = 1.0f / sqrtf(row_square_sum(x, mean, width) / static_cast<float>(width) + static_cast<float>(args->eps));
        if (args->mean) data_of<float>(args->mean)[row] = mean;
        if (args->rstd) data_of<float>(args->rstd)[row] = rstd;
        const Vec c = Vec::broadcast(mean), r = Vec::broadcast(rstd);
        for_each_vec(width, [&](int64_t i, int n) {
          Vec b = bias ? load(bias + i, n) : Vec::zero();
          store(fma((load(x + i, n) - c) * r, load(weight + i, n), b), y + i, n);
        });
      }
    });
    return QT_OK;
  });
}

qt_status layer_norm_backward(qt_stream* stream, const qt_layer_norm_backward_args* args) {
  const Backward a{args->dx,   args->d_weight, args->d_bias,         args->dy, args->x, args->weight,
                   args->mean, args->rstd,     args->accumulate != 0};
  return with_activation(stream, args->x->dtype, [&](auto zero) { return norm_backward<decltype(zero)>(stream, a); });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
