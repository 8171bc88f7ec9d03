// cp.async: copies from global to shared memory that don't pass through registers (sm_80). A thread issues copies, closes a
// group, and waits until at most N of its groups are unfinished; then a barrier makes them visible to the others. Every copy
// must have been waited for before the thread ends.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#if defined(QT_EMULATED)
#include "../emulation/async.h"
#else

namespace quantune::cuda {

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes past the L1 cache; both addresses 16-byte aligned. Where `valid` is false 16 zero bytes are written and `global` is
// not read (it must still be an address that could be).
__device__ inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// The same for 8 and 4 bytes, through L1.
__device__ inline void copy_async_8(void* shared, const void* global, bool valid = true) {
  int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
__device__ inline void copy_async_4(void* shared, const void* global, bool valid = true) {
  int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
__device__ inline void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups>
__device__ inline void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

}  // namespace quantune::cuda
#endif
