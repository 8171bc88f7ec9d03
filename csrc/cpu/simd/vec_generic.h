// Eight floats in plain C++; the compiler vectorizes what it can.
#pragma once
#include <cmath>

#include "types.h"

namespace quantune::cpu::QT_CPU_VARIANT {

struct Vec {
  static constexpr int width = 8;
  float v[width];

  static Vec zero() { return broadcast(0.0f); }
  static Vec broadcast(float x) {
    Vec r;
    for (int i = 0; i < width; i++) r.v[i] = x;
    return r;
  }
  template <class T>
  static Vec load(const T* p) {
    Vec r;
    for (int i = 0; i < width; i++) r.v[i] = to_float(p[i]);
    return r;
  }
  // The first n < width elements; the rest are 0.
  template <class T>
  static Vec load_partial(const T* p, int n) {
    Vec r = zero();
    for (int i = 0; i < n; i++) r.v[i] = to_float(p[i]);
    return r;
  }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < width; i++) p[i] = from_float<T>(v[i]);
  }
  template <class T>
  void store_partial(T* p, int n) const {
    for (int i = 0; i < width; i++)
      if (i < n) p[i] = from_float<T>(v[i]);
  }
};

#define QT_LANES(expression)                                  \
  Vec r;                                                      \
  for (int i = 0; i < Vec::width; i++) r.v[i] = (expression); \
  return r
inline Vec operator+(Vec a, Vec b) { QT_LANES(a.v[i] + b.v[i]); }
inline Vec operator-(Vec a, Vec b) { QT_LANES(a.v[i] - b.v[i]); }
inline Vec operator*(Vec a, Vec b) { QT_LANES(a.v[i] * b.v[i]); }
inline Vec operator/(Vec a, Vec b) { QT_LANES(a.v[i] / b.v[i]); }
inline Vec fma(Vec a, Vec b, Vec c) { QT_LANES(a.v[i] * b.v[i] + c.v[i]); }
inline Vec max(Vec a, Vec b) { QT_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline Vec min(Vec a, Vec b) { QT_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline Vec sqrt(Vec a) { QT_LANES(std::sqrt(a.v[i])); }
// To nearest even by adding what has no bits left for a fraction; larger numbers are whole already. (The library's functions
// are calls, which keep the compiler from vectorizing.)
inline Vec round(Vec a) {
  QT_LANES(a.v[i] < 4194304.0f && a.v[i] > -4194304.0f ? (a.v[i] + 12582912.0f) - 12582912.0f : a.v[i]);
}
// a < b ? x : y, lane by lane.
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) { QT_LANES(a.v[i] < b.v[i] ? x.v[i] : y.v[i]); }
inline float power_of_two(int32_t n) {
  uint32_t u = static_cast<uint32_t>(n + 127) << 23;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
// In two halves, so that n = 128 and n = -127 stay exact.
inline Vec scale_by_power_of_two(Vec a, Vec n) {
  int32_t whole[Vec::width], half[Vec::width];
  for (int i = 0; i < Vec::width; i++) whole[i] = static_cast<int32_t>(n.v[i]);
  for (int i = 0; i < Vec::width; i++) half[i] = whole[i] >> 1;
  QT_LANES(a.v[i] * power_of_two(half[i]) * power_of_two(whole[i] - half[i]));
}
#undef QT_LANES

inline float reduce_add(Vec a) { return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7])); }
inline float reduce_max(Vec a) {
  float m = a.v[0];
  for (int i = 1; i < Vec::width; i++) m = a.v[i] > m ? a.v[i] : m;
  return m;
}

// rows[i] lane j becomes rows[j] lane i.
inline void transpose(Vec (&rows)[Vec::width]) {
  for (int i = 0; i < Vec::width; i++) {
    for (int j = 0; j < i; j++) {
      float x = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = x;
    }
  }
}

// Eight unsigned 32-bit integers.
struct Words {
  uint32_t v[Vec::width];

  static Words broadcast(uint32_t x) {
    Words r;
    for (int i = 0; i < Vec::width; i++) r.v[i] = x;
    return r;
  }
  static Words count_from(uint32_t x) {
    Words r;
    for (int i = 0; i < Vec::width; i++) r.v[i] = x + static_cast<uint32_t>(i);
    return r;
  }
};
inline Words operator^(Words a, Words b) {
  for (int i = 0; i < Vec::width; i++) a.v[i] ^= b.v[i];
  return a;
}
// The low and high halves of a * b.
inline void multiply_wide(Words a, Words b, Words* low, Words* high) {
  for (int i = 0; i < Vec::width; i++) {
    uint64_t product = static_cast<uint64_t>(a.v[i]) * b.v[i];
    low->v[i] = static_cast<uint32_t>(product);
    high->v[i] = static_cast<uint32_t>(product >> 32);
  }
}
// [0, 1) from the highest 24 bits.
inline Vec unit_interval(Words a) {
  Vec r;
  for (int i = 0; i < Vec::width; i++) r.v[i] = static_cast<float>(static_cast<int32_t>(a.v[i] >> 8)) * 5.9604644775390625e-8f;
  return r;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
