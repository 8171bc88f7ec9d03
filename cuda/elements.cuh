// How kernels read and write elements: eight at a time as float32, with 16-byte accesses where the memory is aligned for them.
#pragma once
#include "device/launch.h"
#include "device/types.h"
#include "device/warp.h"
#include "kernels.h"

namespace quantune::cuda {

constexpr int kEight = 8;  // elements a thread takes at a time

// Eight elements as they are stored: two accesses of 16 bytes for float32, one for the 16-bit types, one of 8 for bytes.
template <class T>
struct alignas(sizeof(T) < 4 ? sizeof(T) * kEight : 16) Stored8 {
  T v[kEight];
};

// Elements [0, count) of p, count <= 8; the rest are 0. `aligned`: p stands on a boundary of Stored8<T>.
template <class T>
__device__ inline Stored8<T> load_stored8(const T* p, int64_t count, bool aligned) {
  if (aligned && count >= kEight) return *reinterpret_cast<const Stored8<T>*>(p);
  Stored8<T> stored;
#pragma unroll
  for (int i = 0; i < kEight; i++) stored.v[i] = i < count ? p[i] : T{};
  return stored;
}
template <class T>
__device__ inline void store_stored8(T* p, const Stored8<T>& stored, int64_t count, bool aligned) {
  if (aligned && count >= kEight) {
    *reinterpret_cast<Stored8<T>*>(p) = stored;
  } else {
#pragma unroll
    for (int i = 0; i < kEight; i++)
      if (i < count) p[i] = stored.v[i];
  }
}

// The same as float32.
struct Float8 {
  float v[kEight];
};

template <class T>
__device__ inline Float8 load8(const T* p, int64_t count, bool aligned) {
  const Stored8<T> stored = load_stored8(p, count, aligned);
  Float8 x;
#pragma unroll
  for (int i = 0; i < kEight; i++) x.v[i] = to_float(stored.v[i]);
  return x;
}
template <class T>
__device__ inline void store8(T* p, const Float8& x, int64_t count, bool aligned) {
  Stored8<T> stored;
#pragma unroll
  for (int i = 0; i < kEight; i++) stored.v[i] = from_float<T>(x.v[i]);
  store_stored8(p, stored, count, aligned);
}

// The same for a storage type that is known when the kernel runs (weights: float32, bfloat16 or float16).
__device__ inline Float8 load8(const void* p, int32_t dtype, int64_t at, int64_t count, bool aligned) {
  if (dtype == QT_FLOAT32) return load8(static_cast<const float*>(p) + at, count, aligned);
  if (dtype == QT_BFLOAT16) return load8(static_cast<const bf16*>(p) + at, count, aligned);
  return load8(static_cast<const fp16*>(p) + at, count, aligned);
}

// True when every eighth element of each tensor, counted from its start, is aligned for one wide access.
template <class... Pointers>
inline bool all_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// ---- element-wise kernels --------------------------------------------------------------------------------------------

// body(i, count) for the elements [i, i + count) of n, count <= 8. Bound by memory: a multiprocessor has 2048 threads with one
// wide access of each operand under way.
constexpr int kElementThreads = 256;

template <class Body>
__global__ void __launch_bounds__(kElementThreads) element_kernel(Body body, int64_t n) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x) * kEight;
  if (i < n) body(i, n - i < kEight ? n - i : kEight);
}

template <class Body>
qt_status for_elements(qt_stream* stream, int64_t n, const Body& body) {
  if (n == 0) return QT_OK;
  const int64_t blocks = ceil_div(n, static_cast<int64_t>(kElementThreads * kEight));
  return launch(element_kernel<Body>, blocks, kElementThreads, 0, stream, body, n);
}

}  // namespace quantune::cuda
