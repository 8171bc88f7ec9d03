// How a kernel says that a value it was given is not valid (see qt_stream::report).
#pragma once
#include <cuda_runtime.h>

namespace quantune::cuda {

// In host memory that the device can write; read when the stream has passed the operation.
struct ReportSlot {
  unsigned int claimed;
  unsigned int unused;
  long long values[3];
};

struct Report {
  ReportSlot* slot;

  // The first thread that calls it is the one that counts.
  __device__ void raise(long long a, long long b = 0, long long c = 0) const {
    if (atomicCAS(&slot->claimed, 0u, 1u) != 0u) return;
    slot->values[0] = a;
    slot->values[1] = b;
    slot->values[2] = c;
    __threadfence_system();
  }
};

}  // namespace quantune::cuda
