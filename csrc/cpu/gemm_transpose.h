// Transposing a square of registers: Vec::width rows of Vec::width 32-bit words.
#pragma once
#include "kernels.h"

namespace quantune::cpu::QT_CPU_VARIANT {

#if defined(QT_CPU_AVX512)

inline void transpose(Vec (&x)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 8; i++) {
    a[2 * i] = _mm512_unpacklo_ps(x[2 * i].v, x[2 * i + 1].v);
    a[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i].v, x[2 * i + 1].v);
  }
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 2; j++) {
      const __m512d first = _mm512_castps_pd(a[4 * i + j]), second = _mm512_castps_pd(a[4 * i + j + 2]);
      b[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
      b[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
    }
  }
  // b[4 g + c] holds, in its four 128-bit lanes l, column 4 l + c of rows 4 g to 4 g + 3.
  for (int c = 0; c < 4; c++) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), odd_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88),
                 odd_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    x[c].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    x[8 + c].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    x[4 + c].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    x[12 + c].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

#elif defined(QT_CPU_AVX2)

inline void transpose(Vec (&x)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_ps(x[2 * i].v, x[2 * i + 1].v);
    a[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i].v, x[2 * i + 1].v);
  }
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 2; j++) {
      b[4 * i + 2 * j] = _mm256_shuffle_ps(a[4 * i + j], a[4 * i + j + 2], 0x44);
      b[4 * i + 2 * j + 1] = _mm256_shuffle_ps(a[4 * i + j], a[4 * i + j + 2], 0xee);
    }
  }
  for (int c = 0; c < 4; c++) {
    x[c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    x[4 + c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}

#else

inline void transpose(Vec (&x)[Vec::width]) {
  for (int i = 0; i < Vec::width; i++) {
    for (int j = 0; j < i; j++) {
      const float t = x[i].v[j];
      x[i].v[j] = x[j].v[i];
      x[j].v[i] = t;
    }
  }
}

#endif

}  // namespace quantune::cpu::QT_CPU_VARIANT
