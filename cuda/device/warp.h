// Warp collectives beyond the CUDA intrinsics (__shfl_xor_sync, __ballot_sync, __syncwarp, … are used as they are, always with
// an explicit mask), and sums and maxima over a warp or a block in a fixed order.
#pragma once
#include <cuda_runtime.h>

#include "shared.h"

namespace quantune::cuda {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) & (kWarp - 1); }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};
struct Smallest {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Every lane gets the result over its group of `width` neighbouring lanes; all 32 lanes must take part.
template <int width, class Op, class T>
__device__ inline T warp_reduce(T value) {
#if defined(QT_EMULATED)
  return emulation::butterfly<width, Op>(value);
#else
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) value = Op()(value, __shfl_xor_sync(kFullMask, value, step));
  return value;
#endif
}
template <int width = kWarp, class T>
__device__ inline T warp_sum(T value) {
  return warp_reduce<width, Sum>(value);
}
template <int width = kWarp, class T>
__device__ inline T warp_max(T value) {
  return warp_reduce<width, Largest>(value);
}
template <int width = kWarp, class T>
__device__ inline T warp_min(T value) {
  return warp_reduce<width, Smallest>(value);
}

// Every thread gets the sum over the block, whose size is a multiple of 32 (one dimension). Called by all its threads.
template <class T>
__device__ inline T block_sum(T value) {
  QT_SHARED(T, partial, kWarp);
  value = warp_sum(value);
  __syncthreads();  // what an earlier call left in `partial` has been read
  if (lane_index() == 0) partial[warp_index()] = value;
  __syncthreads();
  T total = lane_index() < static_cast<int>(blockDim.x) / kWarp ? partial[lane_index()] : T(0);
  return warp_sum(total);
}
template <class T>
__device__ inline T block_max(T value) {
  QT_SHARED(T, partial, kWarp);
  value = warp_max(value);
  __syncthreads();
  if (lane_index() == 0) partial[warp_index()] = value;
  __syncthreads();
  T largest = partial[lane_index() < static_cast<int>(blockDim.x) / kWarp ? lane_index() : 0];
  return warp_max(largest);
}

}  // namespace quantune::cuda
