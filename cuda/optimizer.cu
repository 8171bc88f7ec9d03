// The global gradient norm and AdamW (Loshchilov and Hutter 2019) over lists of float32 tensors, each in one pass over all.
#include <cmath>

#include "elements.cuh"
#include "lists.cuh"

namespace quantune::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = kThreads * kEight * 4;

struct Gradient {
  const float* data;
  int64_t size;
};

// The sum of the squares of each piece, in float64, which squares of float32 neither overflow nor lose. Bound by memory.
__global__ void __launch_bounds__(kThreads) square_sums_kernel(ListPieces pieces, const Gradient* gradients, double* partial) {
  const Piece piece = find_piece(pieces, kPiece);
  const Gradient gradient = gradients[piece.item];
  const bool aligned = reinterpret_cast<uintptr_t>(gradient.data) % 16 == 0;
  const int64_t end = piece.begin + kPiece < gradient.size ? piece.begin + kPiece : gradient.size;
  double sum = 0;
  for (int64_t i = piece.begin + threadIdx.x * kEight; i < end; i += kThreads * kEight) {
    const Float8 x = load8(gradient.data + i, end - i, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) sum = fma(static_cast<double>(x.v[j]), static_cast<double>(x.v[j]), sum);
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) finish_norm_kernel(const double* partial, int64_t pieces, float* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) sum += partial[i];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(total));
}

struct Parameter {
  float* p;
  const float* g;
  float *m, *v;
  int64_t size;
};

// What an update needs beside the tensors; the clipping factor comes from the norm, which only the device knows.
struct Update {
  float max_norm, keep, rest1, beta2, rest2, root2, eps, step_size;
};

// The order of operations is torch.optim.AdamW's, with torch.nn.utils.clip_grad_norm_ before it. A norm that is not finite:
// nothing is changed. Bound by memory: 16 bytes read and 12 written a parameter.
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(ListPieces pieces, const Parameter* parameters, const float* norm, int32_t* not_finite, Update update) {
  const float n = *norm;
  if (!(n - n == 0)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *not_finite = 1;
    return;
  }
  const float clip = update.max_norm / (n + 1e-6f), scale = update.max_norm > 0 && clip < 1 ? clip : 1.0f;
  const Piece piece = find_piece(pieces, kPiece);
  const Parameter x = parameters[piece.item];
  const bool aligned = (reinterpret_cast<uintptr_t>(x.p) | reinterpret_cast<uintptr_t>(x.g) | reinterpret_cast<uintptr_t>(x.m) |
                        reinterpret_cast<uintptr_t>(x.v)) %
                           16 ==
                       0;
  const int64_t end = piece.begin + kPiece < x.size ? piece.begin + kPiece : x.size;
  for (int64_t i = piece.begin + threadIdx.x * kEight; i < end; i += kThreads * kEight) {
    Float8 p = load8(x.p + i, end - i, aligned), m = load8(x.m + i, end - i, aligned), v = load8(x.v + i, end - i, aligned);
    const Float8 g = load8(x.g + i, end - i, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) {
      const float gradient = g.v[j] * scale;
      m.v[j] = fmaf(update.rest1, gradient - m.v[j], m.v[j]);
      v.v[j] = fmaf(gradient * update.rest2, gradient, v.v[j] * update.beta2);
      p.v[j] = fmaf(update.step_size, m.v[j] / (sqrtf(v.v[j]) / update.root2 + update.eps), p.v[j] * update.keep);
    }
    store8(x.m + i, m, end - i, aligned);
    store8(x.v + i, v, end - i, aligned);
    store8(x.p + i, p, end - i, aligned);
  }
}

// With no parameters there is no piece, but the flag is raised all the same.
__global__ void check_norm_kernel(const float* norm, int32_t* not_finite) {
  if (!(*norm - *norm == 0)) *not_finite = 1;
}

}  // namespace

qt_status grad_norm(qt_stream* stream, const qt_grad_norm_args* args) {
  auto describe = [&](int64_t i) {
    return Gradient{data_of<const float>(args->grads->items[i]), args->grads->items[i]->elements};
  };
  return for_list<Gradient>(stream, args->grads, kPiece, describe, [&](const ListPieces& pieces, const Gradient* gradients) {
    double* partial = stream->scratch_of<double>(pieces.count + 1);
    if (!partial) return stream->out_of_scratch();
    qt_status status = launch(square_sums_kernel, pieces.count, kThreads, 0, stream, pieces, gradients, partial);
    if (status != QT_OK) return status;
    return launch(finish_norm_kernel, 1, kThreads, 0, stream, partial, pieces.count, data_of<float>(args->norm));
  });
}

qt_status adamw(qt_stream* stream, const qt_adamw_args* a) {
  if (a->step < 1) {
    return stream->fail(QT_INVALID_ARGUMENT, "step is %lld, expected 1 for the first update", static_cast<long long>(a->step));
  }
  const double step = static_cast<double>(a->step), correction1 = 1 - std::pow(a->beta1, step),
               correction2 = 1 - std::pow(a->beta2, step);
  const Update update{static_cast<float>(a->max_norm),  static_cast<float>(1 - a->learning_rate * a->weight_decay),
                      static_cast<float>(1 - a->beta1), static_cast<float>(a->beta2),
                      static_cast<float>(1 - a->beta2), static_cast<float>(std::sqrt(correction2)),
                      static_cast<float>(a->eps),       static_cast<float>(-a->learning_rate / correction1)};
  const float* norm = data_of<const float>(a->norm);
  int32_t* not_finite = data_of<int32_t>(a->not_finite);
  auto describe = [&](int64_t i) {
    return Parameter{data_of<float>(a->params->items[i]), data_of<const float>(a->grads->items[i]),
                     data_of<float>(a->m->items[i]), data_of<float>(a->v->items[i]), a->params->items[i]->elements};
  };
  return for_list<Parameter>(stream, a->params, kPiece, describe, [&](const ListPieces& pieces, const Parameter* parameters) {
    if (pieces.count == 0) return launch(check_norm_kernel, 1, 1, 0, stream, norm, not_finite);
    return launch(adamw_kernel, pieces.count, kThreads, 0, stream, pieces, parameters, norm, not_finite, update);
  });
}

}  // namespace quantune::cuda
