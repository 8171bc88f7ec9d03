// float16 for the emulation.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float x);         // NOLINT(google-explicit-constructor)
  operator float() const;  // NOLINT(google-explicit-constructor)
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) {
  __half r;
  r.bits = bits;
  return r;
}
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half h) {
  unsigned int sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 0x1f, mantissa = h.bits & 0x3ff;
  if (exponent == 0) {
    float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline __half __float2half(float x) {
  unsigned int u = __float_as_uint(x), sign = u >> 16 & 0x8000u;
  float magnitude = std::fabs(x);
  if (x != x) return __ushort_as_half(0x7fff);
  if (magnitude >= 65520.0f) return __ushort_as_half(static_cast<unsigned short>(sign | 0x7c00u));
  if (magnitude < 6.103515625e-05f) {  // subnormal: units of 2^-24
    return __ushort_as_half(
        static_cast<unsigned short>(sign | static_cast<unsigned int>(std::nearbyint(magnitude * 16777216.0f))));
  }
  unsigned int m = u & 0x7fffffffu;
  m += 0xfffu + (m >> 13 & 1u);
  return __ushort_as_half(static_cast<unsigned short>(sign | ((m >> 13) - (112u << 10))));
}
inline __half::__half(float x) : bits(__float2half(x).bits) {}
inline __half::operator float() const { return __half2float(*this); }
inline __half __float2half_rn(float x) { return __float2half(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float2 __half22float2(__half2 v) { return make_float2(__half2float(v.x), __half2float(v.y)); }
using half = __half;
using half2 = __half2;
