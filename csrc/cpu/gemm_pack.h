// Packing: a strip of outer indices of a Factor becomes [k][stride] words, converted and scaled on the way.
#pragma once
#include "gemm.h"
#include "simd/pairs.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// out[k * stride + lane] = scale * factor(first + lane, k_start + k) for lane < lanes; lanes up to stride are set to 0.
// `line` holds k floats of scratch. out may be written up to Vec::width floats beyond its end.
void pack_strip(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out,
                float* line);

#if defined(QT_PAIRS)
// The same, rounded to bfloat16: word i of a lane holds k = 2 i and 2 i + 1, the second 0 past the end. Lanes beyond `lanes` as
// above; `line` holds k + 2 * tile columns floats.
void pack_strip(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, Pair* out,
                float* line);
#endif

template <class T>
inline Vec load_up_to(const T* from, int64_t count) {
  return count >= Vec::width ? Vec::load(from) : Vec::load_partial(from, static_cast<int>(count));
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
