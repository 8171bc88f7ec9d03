// Sums over the lanes of four registers at once, in the order of reduce_add: lane i and the lane half the width behind it, and
// so on with what is left.
#pragma once
#include "vec.h"

namespace quantune::cpu::QT_CPU_VARIANT {

#if defined(QT_CPU_AVX512) || defined(QT_CPU_AVX2)

// out[i] = the sum of a[i]'s lanes.
inline void reduce_add(const Vec (&a)[4], float* out) {
  __m256 y[4];
  for (int i = 0; i < 4; i++) {
#if defined(QT_CPU_AVX512)
    y[i] = _mm256_add_ps(_mm512_castps512_ps256(a[i].v), upper_half(a[i]));
#else
    y[i] = a[i].v;
#endif
  }
  auto fold = [](__m256 low, __m256 high) {  // four lanes of each
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  };
  const __m256 first = fold(y[0], y[2]), second = fold(y[1], y[3]);
  const __m256d p = _mm256_castps_pd(first), q = _mm256_castps_pd(second);
  const __m256 pairs = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(p, q)), _mm256_castpd_ps(_mm256_unpackhi_pd(p, q)));
  const __m128 low = _mm256_castps256_ps128(pairs), high = _mm256_extractf128_ps(pairs, 1);  // two lanes of 0 and 1, of 2 and 3
  _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(low, high, 0x88), _mm_shuffle_ps(low, high, 0xdd)));
}

#else

inline void reduce_add(const Vec (&a)[4], float* out) {
  for (int i = 0; i < 4; i++) out[i] = reduce_add(a[i]);
}

#endif

}  // namespace quantune::cpu::QT_CPU_VARIANT
