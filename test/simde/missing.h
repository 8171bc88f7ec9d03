// What SIMDe 0.7.4 lacks of what the AVX-512 variants use.
#pragma once
#include <cstdint>
#include <cstring>

namespace quantune_simde {

template <class To, class From>
inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int n>
struct Lanes {
  T lane[n];
};

// VCVTNE2PS2BF16: to nearest even; denormals count as 0, NaN becomes quiet.
inline uint16_t to_bfloat16(float x) {
  uint32_t u = same_bits<uint32_t>(x);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude < 0x00800000u) return static_cast<uint16_t>(u >> 16 & 0x8000);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 64);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
  const auto h = same_bits<Lanes<float, 16>>(high), l = same_bits<Lanes<float, 16>>(low);
  Lanes<uint16_t, 32> r;
  for (int i = 0; i < 16; i++) {
    r.lane[i] = to_bfloat16(l.lane[i]);
    r.lane[16 + i] = to_bfloat16(h.lane[i]);
  }
  return same_bits<__m512bh>(r);
}

#if !defined(__AVX512F__)

template <class To, class From, int n, class Register, class Source>
inline Register convert(const Source& x) {
  const auto from = same_bits<Lanes<From, n>>(x);
  Lanes<To, n> to;
  for (int i = 0; i < n; i++) to.lane[i] = static_cast<To>(from.lane[i]);
  return same_bits<Register>(to);
}
// Lanes of which the mask's bit is set; the others are 0, or left as they are in memory.
template <class T, int n, class Register>
inline Register load_masked(uint32_t mask, const void* p) {
  Lanes<T, n> r = {};
  for (int i = 0; i < n; i++)
    if (mask >> i & 1) std::memcpy(&r.lane[i], static_cast<const T*>(p) + i, sizeof(T));
  return same_bits<Register>(r);
}
template <class T, int n, class Register>
inline void store_masked(void* p, uint32_t mask, const Register& x) {
  const auto r = same_bits<Lanes<T, n>>(x);
  for (int i = 0; i < n; i++)
    if (mask >> i & 1) std::memcpy(static_cast<T*>(p) + i, &r.lane[i], sizeof(T));
}
inline __m512 shuffle_f32x4(const __m512& a, const __m512& b, int order) {
  const auto x = same_bits<Lanes<__m128, 4>>(a), y = same_bits<Lanes<__m128, 4>>(b);
  return same_bits<__m512>(
      Lanes<__m128, 4>{{x.lane[order & 3], x.lane[order >> 2 & 3], y.lane[order >> 4 & 3], y.lane[order >> 6 & 3]}});
}
inline __m512 cvtph_ps(const __m256i& x) {
  const auto half = same_bits<Lanes<__m128i, 2>>(x);
  return same_bits<__m512>(Lanes<__m256, 2>{{_mm256_cvtph_ps(half.lane[0]), _mm256_cvtph_ps(half.lane[1])}});
}
inline __m256i cvtps_ph(const __m512& x) {
  const auto half = same_bits<Lanes<__m256, 2>>(x);
  return same_bits<__m256i>(Lanes<__m128i, 2>{{_mm256_cvtps_ph(half.lane[0], 0), _mm256_cvtps_ph(half.lane[1], 0)}});
}

#endif
}  // namespace quantune_simde

#if !defined(__AVX512BF16__)
#define _mm512_cvtne2ps_pbh quantune_simde::cvtne2ps_pbh
#endif

#if !defined(__AVX512F__)
#define _mm512_cvtepu8_epi32(x) (quantune_simde::convert<uint32_t, uint8_t, 16, __m512i>(x))
#define _mm512_cvtepi8_epi32(x) (quantune_simde::convert<int32_t, int8_t, 16, __m512i>(x))
#define _mm512_cvtepu16_epi32(x) (quantune_simde::convert<uint32_t, uint16_t, 16, __m512i>(x))
#define _mm512_cvtepi32_epi16(x) (quantune_simde::convert<uint16_t, uint32_t, 16, __m256i>(x))
#define _mm512_cvtepi32_ps(x) (quantune_simde::convert<float, int32_t, 16, __m512>(x))
#define _mm512_maskz_loadu_ps(mask, p) (quantune_simde::load_masked<float, 16, __m512>(mask, p))
#define _mm_maskz_loadu_epi8(mask, p) (quantune_simde::load_masked<int8_t, 16, __m128i>(mask, p))
#define _mm512_maskz_loadu_epi16(mask, p) (quantune_simde::load_masked<uint16_t, 32, __m512i>(mask, p))
#define _mm256_maskz_loadu_epi16(mask, p) (quantune_simde::load_masked<uint16_t, 16, __m256i>(mask, p))
#define _mm512_mask_storeu_ps(p, mask, x) (quantune_simde::store_masked<float, 16>(p, mask, x))
#define _mm256_mask_storeu_epi16(p, mask, x) (quantune_simde::store_masked<uint16_t, 16>(p, mask, x))
#define _mm512_shuffle_f32x4 quantune_simde::shuffle_f32x4
#define _mm512_cvtph_ps quantune_simde::cvtph_ps
#define _mm512_cvtps_ph(x, rounding) (quantune_simde::cvtps_ph(x))  // to nearest even: all that is asked for
#endif
