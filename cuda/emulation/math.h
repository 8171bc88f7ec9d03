// Bit operations, conversions and fast mathematics under CUDA's names. The fast forms are exact here: a GPU is less so.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned int __brev(unsigned int x) {
  unsigned int r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int s) {
  uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned int r = 0;
  for (int i = 0; i < 4; i++) {
    unsigned int selector = s >> (4 * i) & 0xf, byte = static_cast<unsigned int>(bytes >> (8 * (selector & 7))) & 0xff;
    if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline unsigned int __funnelshift_l(unsigned int lo, unsigned int hi, unsigned int shift) {
  return static_cast<unsigned int>((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31) >> 32);
}
inline unsigned int __funnelshift_r(unsigned int lo, unsigned int hi, unsigned int shift) {
  return static_cast<unsigned int>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31));
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}

#define QT_BITCAST(name, To, From) \
  inline To name(From x) {         \
    To r;                          \
    std::memcpy(&r, &x, sizeof r); \
    return r;                      \
  }
QT_BITCAST(__float_as_int, int, float)
QT_BITCAST(__float_as_uint, unsigned int, float)
QT_BITCAST(__int_as_float, float, int)
QT_BITCAST(__uint_as_float, float, unsigned int)
QT_BITCAST(__double_as_longlong, long long, double)
QT_BITCAST(__longlong_as_double, double, long long)
#undef QT_BITCAST

// Saturating, NaN to 0, as the hardware converts.
template <class I, class F>
I qt_saturate(F x) {
  if (std::isnan(x)) return 0;
  if (x >= -static_cast<F>(std::numeric_limits<I>::min())) {
    if (std::numeric_limits<I>::min() != 0) return std::numeric_limits<I>::max();
  }
  if (x <= static_cast<F>(std::numeric_limits<I>::min())) return std::numeric_limits<I>::min();
  if (x >= static_cast<F>(std::numeric_limits<I>::max())) return std::numeric_limits<I>::max();
  return static_cast<I>(x);
}
inline int __float2int_rn(float x) { return qt_saturate<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return qt_saturate<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return qt_saturate<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return qt_saturate<int>(std::ceil(x)); }
inline unsigned int __float2uint_rn(float x) { return qt_saturate<unsigned int>(std::nearbyint(x)); }
inline unsigned int __float2uint_rz(float x) { return qt_saturate<unsigned int>(std::trunc(x)); }
inline long long __float2ll_rn(float x) { return qt_saturate<long long>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned int x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline float __expf(float x) { return std::exp(x); }
inline float __exp2f(float x) { return std::exp2(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float exp10f(float x) { return std::pow(10.0f, x); }
inline void sincosf_(float x, float* s, float* c) { *s = std::sin(x), *c = std::cos(x); }
inline void __sincosf(float x, float* s, float* c) { sincosf_(x, s, c); }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678118654752f); }

// CUDA's overloads, which take mixed types.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return a != a ? T(b) : b < a ? T(b) : T(a);
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return a != a ? T(b) : b > a ? T(b) : T(a);
  return T(b) > T(a) ? T(b) : T(a);
}
