// Rotary position embedding (Su et al. 2021), "rotate half" as in Hugging Face: element i is paired with i + D/2.
#include <cmath>

#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

// One head of one token; y may be x, as both halves are read before either is written.
template <class T>
inline void rotate(T* y, const T* x, const float* cosine, const float* sine, int64_t half, Vec sign) {
  for_each_vec(half, [&](int64_t i, int n) {
    Vec a = load(x + i, n), b = load(x + half + i, n), c = load(cosine + i, n), s = load(sine + i, n) * sign;
    store(a * c - b * s, y + i, n);
    store(fma(b, c, a * s), y + half + i, n);
  });
}

}  // namespace

// The angle is the float32 product of position and frequency, as transformers computes it.
qt_status rope_table(qt_stream* stream, const qt_rope_table_args* args) {
  const int64_t tokens = args->positions->elements, half = args->inv_freq->elements;
  const int32_t* positions = data_of<const int32_t>(args->positions);
  const float *inv_freq = data_of<const float>(args->inv_freq), scaling = static_cast<float>(args->attention_scaling);
  float* table = data_of<float>(args->table);
  for_chunks(stream, tokens, ceil_div(512, half ? half : 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      for (int64_t i = 0; i < half; i++) {
        const float angle = static_cast<float>(positions[t]) * inv_freq[i];
        table[t * 2 * half + i] = cosf(angle) * scaling;
        table[t * 2 * half + half + i] = sinf(angle) * scaling;
      }
    }
  });
  return QT_OK;
}

qt_status rope(qt_stream* stream, const qt_rope_args* args) {
  const int64_t tokens = args->x->shape[0], heads = args->x->shape[1], size = args->x->shape[2], half = size / 2;
  const float* table = data_of<const float>(args->table);
  const Vec sign = Vec::broadcast(args->inverse ? -1.0f : 1.0f);
  return with_activation(stream, args->x->dtype, [&](auto zero) {
    using T = decltype(zero);
    for_chunks(stream, tokens, rows_per_task(heads * size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        for (int64_t h = 0; h < heads; h++) {
          const int64_t at = (t * heads + h) * size;
          rotate(data_of<T>(args->y) + at, data_of<const T>(args->x) + at, table + t * size, table + t * size + half, half,
                 sign);
        }
      }
    });
    return QT_OK;
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
