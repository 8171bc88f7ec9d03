// Declaration specifiers and CUDA's small vectors.
#pragma once
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define QT_VECTORS(T, name, a1, a2, a4)                              \
  struct name##1 {                                                   \
    T x;                                                             \
  };                                                                 \
  struct alignas(a2) name##2 {                                       \
    T x, y;                                                          \
  };                                                                 \
  struct name##3 {                                                   \
    T x, y, z;                                                       \
  };                                                                 \
  struct alignas(a4) name##4 {                                       \
    T x, y, z, w;                                                    \
  };                                                                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
QT_VECTORS(signed char, char, 1, 2, 4)
QT_VECTORS(unsigned char, uchar, 1, 2, 4)
QT_VECTORS(short, short, 2, 4, 8)
QT_VECTORS(unsigned short, ushort, 2, 4, 8)
QT_VECTORS(int, int, 4, 8, 16)
QT_VECTORS(unsigned int, uint, 4, 8, 16)
QT_VECTORS(float, float, 4, 8, 16)
QT_VECTORS(long long, longlong, 8, 16, 16)
QT_VECTORS(unsigned long long, ulonglong, 8, 16, 16)
QT_VECTORS(double, double, 8, 16, 16)
#undef QT_VECTORS

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};
