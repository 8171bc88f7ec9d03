// Shared memory. Static: QT_SHARED(float, sums, 32) declares `sums`, 32 floats. Dynamic: one struct names the arrays, and its
// constructor is the carve sequence that host (how many bytes?) and device (where?) share:
//
//   struct Tiles {
//     bf16* a;
//     float* sums;
//     __host__ __device__ Tiles(SharedCarver& carve, int k) {
//       a = carve.array<bf16>(128 * k, 128);       // aligned to 128 bytes; 16 is the default, 1024 the most
//       sums = carve.array<float>(32);
//     }
//   };
//   launch(kernel, grid, block, shared_bytes<Tiles>(k), stream, k, …);             // host
//   SharedCarver carve = dynamic_shared(); Tiles tiles(carve, k);                 // kernel
//
// Under emulation every array is filled with NaN when its block starts, and has a red zone behind it.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#if defined(QT_EMULATED)
#include "../emulation/shared.h"
#else

#define QT_SHARED(type, name, count) __shared__ type name[count]

namespace quantune::cuda {

constexpr size_t kRedZone = 0;
__device__ inline char* dynamic_shared_base() {
  extern __shared__ __align__(1024) char quantune_dynamic_shared[];
  return quantune_dynamic_shared;
}
__device__ inline void mark_red_zone(char*) {}

}  // namespace quantune::cuda
#endif

namespace quantune::cuda {

class SharedCarver {
 public:
  __host__ __device__ explicit SharedCarver(char* base) : base_(base), bytes_(0) {}

  template <class T>
  __host__ __device__ T* array(int64_t count, size_t alignment = 16) {
    bytes_ = (bytes_ + alignment - 1) / alignment * alignment;
    size_t at = bytes_;
    bytes_ += static_cast<size_t>(count) * sizeof(T);
    if (kRedZone > 0) {
      bytes_ = (bytes_ + 15) / 16 * 16;
#if defined(QT_EMULATED)
      if (base_) mark_red_zone(base_ + bytes_);
#endif
      bytes_ += kRedZone;
    }
    return reinterpret_cast<T*>(base_ + at);
  }
  __host__ __device__ size_t bytes() const { return bytes_; }

 private:
  char* base_;
  size_t bytes_;
};

template <class Layout, class... Sizes>
size_t shared_bytes(Sizes... sizes) {
  SharedCarver carve(nullptr);
  Layout layout(carve, sizes...);
  static_cast<void>(layout);
  return carve.bytes();
}

__device__ inline SharedCarver dynamic_shared() { return SharedCarver(dynamic_shared_base()); }

}  // namespace quantune::cuda
