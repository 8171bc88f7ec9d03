// Rotary position embedding (Su et al. 2021), "rotate half" as in Hugging Face: element i is paired with i + D/2.
#include "elements.cuh"

namespace quantune::cuda {
namespace {

constexpr int kThreads = 256;

// The angle is the float32 product of position and frequency, as transformers computes it. A table is small: bound by the
// launch.
__global__ void __launch_bounds__(kThreads) rope_table_kernel(float* table, const int32_t* positions, const float* inv_freq,
                                                              float scaling, int64_t tokens, int64_t half) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= tokens * half) return;
  const int64_t t = at / half, i = at - t * half;
  const float angle = static_cast<float>(positions[t]) * inv_freq[i];
  table[t * 2 * half + i] = cosf(angle) * scaling;
  table[t * 2 * half + half + i] = sinf(angle) * scaling;
}

// A thread turns eight pairs of one head; y may be x, as both halves are read before either is written. Bound by memory: x
// once, y once; the table is shared by the heads of a token and comes from the caches.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(T* y, const T* x, const float* table, int64_t count, int64_t heads, int64_t half, float sign, bool aligned) {
  const int64_t eights = ceil_div<int64_t>(half, kEight), i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count * eights) return;
  const int64_t head = i / eights, column = (i - head * eights) * kEight, rest = half - column;
  const int64_t at = head * 2 * half + column, table_at = head / heads * 2 * half + column;
  Float8 a = load8(x + at, rest, aligned), b = load8(x + at + half, rest, aligned);
  const Float8 cosine = load8(table + table_at, rest, aligned), sine = load8(table + table_at + half, rest, aligned);
#pragma unroll
  for (int j = 0; j < kEight; j++) {
    const float s = sine.v[j] * sign, first = a.v[j];
    a.v[j] = first * cosine.v[j] - b.v[j] * s;
    b.v[j] = fmaf(b.v[j], cosine.v[j], first * s);
  }
  store8(y + at, a, rest, aligned);
  store8(y + at + half, b, rest, aligned);
}

}  // namespace

qt_status rope_table(qt_stream* stream, const qt_rope_table_args* args) {
  const int64_t tokens = args->positions->elements, half = args->inv_freq->elements;
  return launch(rope_table_kernel, ceil_div<int64_t>(tokens * half, kThreads), kThreads, 0, stream, data_of<float>(args->table),
                data_of<const int32_t>(args->positions), data_of<const float>(args->inv_freq), args->attention_scaling, tokens,
                half);
}

qt_status rope(qt_stream* stream, const qt_rope_args* args) {
  const int64_t tokens = args->x->shape[0], heads = args->x->shape[1], half = args->x->shape[2] / 2;
  const bool aligned = half % kEight == 0 && all_aligned(args->y->data, args->x->data, args->table->data);
  const float sign = args->inverse ? -1.0f : 1.0f;
  return with_activation(args->x->dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = tokens * heads;
    return launch(rope_kernel<T>, ceil_div<int64_t>(count * ceil_div<int64_t>(half, kEight), kThreads), kThreads, 0, stream,
                  data_of<T>(args->y), data_of<const T>(args->x), data_of<const float>(args->table), count, heads, half, sign,
                  aligned);
  });
}

}  // namespace quantune::cuda
