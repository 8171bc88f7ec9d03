// Element types, conversions, and loads of several elements at once.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../../csrc/core/abi.h"

namespace quantune::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__host__ __device__ inline float to_float(fp16 x) { return __half2float(x); }
__host__ __device__ inline float to_float(int32_t x) { return static_cast<float>(x); }

// Rounds to nearest, ties to even.
template <class T>
__host__ __device__ T from_float(float x);
template <>
__host__ __device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__host__ __device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16(x);
}
template <>
__host__ __device__ inline fp16 from_float<fp16>(float x) {
  return __float2half(x);
}

// N elements that are loaded and stored as one: sizeof(T) * N must be a power of two up to 16, and the address aligned to it.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
  __host__ __device__ T& operator[](int i) { return v[i]; }
  __host__ __device__ const T& operator[](int i) const { return v[i]; }
};

template <int N, class T>
__device__ inline Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ inline void store_pack(T* to, const Pack<T, N>& values) {
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}

// Two bfloat16 in one register, `low` at the lower address, as mma fragments hold them.
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);  // one instruction
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
__device__ inline float2 unpack_bf16(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// ---- host: reading a qt_tensor -------------------------------------------------------------------------------------------
template <class T>
T* data_of(const qt_tensor* tensor) {
  return tensor ? static_cast<T*>(tensor->data) : nullptr;
}
inline int64_t last_of(const qt_tensor* t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }
inline int64_t rows_of(const qt_tensor* t) { return t->ndim ? t->shape[0] : 1; }

// Calls body(T{}) with the C++ type of an activation (float32 or bfloat16), or of any float dtype.
template <class Body>
auto with_activation(int32_t dtype, const Body& body) {
  return dtype == QT_BFLOAT16 ? body(bf16{}) : body(float{});
}
template <class Body>
auto with_float(int32_t dtype, const Body& body) {
  return dtype == QT_BFLOAT16 ? body(bf16{}) : dtype == QT_FLOAT16 ? body(fp16{}) : body(float{});
}

}  // namespace quantune::cuda
