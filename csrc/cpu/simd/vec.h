// Vec: a register of floats, with the width of the variant being compiled. Kernels are written once over it.
#pragma once
#include "types.h"

#if defined(QT_CPU_AVX512)
#include "vec_avx512.h"
#elif defined(QT_CPU_AVX2)
#include "vec_avx2.h"
#else
#include "vec_generic.h"
#endif

namespace quantune::cpu::QT_CPU_VARIANT {

inline Vec operator-(Vec x) { return Vec::zero() - x; }

// e^x, relative error below 2 ulp; 0 below -87.3, infinity above 88.7 (Cephes' range reduction and polynomial).
inline Vec exp(Vec x) {
  const Vec lowest = Vec::broadcast(-87.33654f), highest = Vec::broadcast(88.72283f);
  // Where an operand of min and max is NaN they give the second: NaN stays, but not in n, which becomes an integer.
  Vec clamped = min(highest, max(lowest, x));
  Vec n = round(max(clamped, lowest) * Vec::broadcast(1.44269504088896341f));
  Vec r = fma(n, Vec::broadcast(-0.693359375f), clamped);
  r = fma(n, Vec::broadcast(2.12194440e-4f), r);
  Vec p = Vec::broadcast(1.9875691500e-4f);
  p = fma(p, r, Vec::broadcast(1.3981999507e-3f));
  p = fma(p, r, Vec::broadcast(8.3334519073e-3f));
  p = fma(p, r, Vec::broadcast(4.1665795894e-2f));
  p = fma(p, r, Vec::broadcast(1.6666665459e-1f));
  p = fma(p, r, Vec::broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + Vec::broadcast(1.0f);
  Vec result = scale_by_power_of_two(p, n);
  result = select_less(x, lowest, Vec::zero(), result);
  return select_less(highest, x, Vec::broadcast(__builtin_inff()), result);
}

inline Vec sigmoid(Vec x) { return Vec::broadcast(1.0f) / (Vec::broadcast(1.0f) + exp(-x)); }

// Walks [0, n) in whole vectors, then the rest: body(i, count) with count = Vec::width but in the last step.
template <class Body>
inline void for_each_vec(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) body(i, static_cast<int>(Vec::width));
  if (i < n) body(i, static_cast<int>(n - i));
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
