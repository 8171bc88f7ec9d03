// The global gradient norm and AdamW (Loshchilov and Hutter 2019) over lists of float32 tensors.
#include <cmath>

#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr int64_t kListChunk = 1 << 16;

// Sixteen float64 sums side by side, added up in a fixed order.
double square_sum(const float* x, int64_t n) {
  double lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int lane = 0; lane < 16; lane++) lanes[lane] += static_cast<double>(x[i + lane]) * x[i + lane];
  }
  for (int lane = 0; i < n; i++, lane++) lanes[lane] += static_cast<double>(x[i]) * x[i];
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

}  // namespace

qt_status grad_norm(qt_stream* stream, const qt_grad_norm_args* args) {
  int64_t total = 0;
  for (int64_t i = 0; i < args->grads->count; i++) total += args->grads->items[i]->elements;
  const int64_t tasks = ceil_div(total, kListChunk);
  double* partial = stream->scratch_of<double>(tasks + 1);
  if (!partial) return out_of_scratch(stream);
  for (int64_t i = 0; i < tasks; i++) partial[i] = 0;
  qt_status status = for_list(stream, args->grads, kListChunk, [&](int64_t index, int64_t begin, int64_t end, int64_t task) {
    partial[task] += square_sum(data_of<const float>(args->grads->items[index]) + begin, end - begin);
  });
  if (status != QT_OK) return status;
  double squares = 0;
  for (int64_t i = 0; i < tasks; i++) squares += partial[i];
  *data_of<float>(args->norm) = static_cast<float>(::sqrt(squares));
  return QT_OK;
}

// The order of operations is torch.optim.AdamW's, with torch.nn.utils.clip_grad_norm_ before it.
qt_status adamw(qt_stream* stream, const qt_adamw_args* a) {
  if (a->step < 1) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "step is %lld, expected 1 for the first update",
                              static_cast<long long>(a->step));
  }
  const float norm = *data_of<const float>(a->norm);
  if (!(norm - norm == 0)) {
    *data_of<int32_t>(a->not_finite) = 1;
    return QT_OK;
  }
  const float clip = static_cast<float>(a->max_norm) / (norm + 1e-6f);
  const Vec gradient_scale = Vec::broadcast(a->max_norm > 0 && clip < 1 ? clip : 1.0f);
  const double step = static_cast<double>(a->step), correction1 = 1 - pow(a->beta1, step),
               correction2 = 1 - pow(a->beta2, step);
  const Vec keep = Vec::broadcast(static_cast<float>(1 - a->learning_rate * a->weight_decay));
  const Vec rest1 = Vec::broadcast(static_cast<float>(1 - a->beta1));
  const Vec beta2 = Vec::broadcast(static_cast<float>(a->beta2)), rest2 = Vec::broadcast(static_cast<float>(1 - a->beta2));
  const Vec root2 = Vec::broadcast(static_cast<float>(::sqrt(correction2))), eps = Vec::broadcast(static_cast<float>(a->eps));
  const Vec step_size = Vec::broadcast(static_cast<float>(-a->learning_rate / correction1));
  return for_list(stream, a->params, kListChunk / 4, [&](int64_t index, int64_t begin, int64_t end, int64_t) {
    float* p = data_of<float>(a->params->items[index]);
    const float* g = data_of<const float>(a->grads->items[index]);
    float *m = data_of<float>(a->m->items[index]), *v = data_of<float>(a->v->items[index]);
    for_vectors(begin, end, [&](int64_t i, int n) {
      Vec gradient = load(g + i, n) * gradient_scale, first = load(m + i, n), second = load(v + i, n) * beta2;
      first = fma(rest1, gradient - first, first);
      second = fma(gradient * rest2, gradient, second);
      store(first, m + i, n);
      store(second, v + i, n);
      store(fma(step_size, first / (sqrt(second) / root2 + eps), load(p + i, n) * keep), p + i, n);
    });
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
