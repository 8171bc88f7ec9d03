// Counters in device memory by which blocks of a grid tell others of it that something has been written. A block may wait only
// for one that certainly runs already: for a ticket that was handed out before its own (an atomicAdd when it starts).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#if defined(QT_EMULATED)
#include "../emulation/ready.h"
#else

namespace quantune::cuda {

// By one thread, after a __syncthreads behind what the block wrote.
__device__ inline void signal_ready(int32_t* counter) {
  __threadfence();
  atomicAdd(counter, 1);
}
// By one thread, until `count` have signalled; a __syncthreads later the block may read what they wrote.
__device__ inline void wait_ready(const int32_t* counter, int32_t count) {
  int32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < count);
}

}  // namespace quantune::cuda
#endif
