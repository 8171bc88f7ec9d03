// Kernel launches under emulation: a grid becomes a piece of work of its stream.
#pragma once
#include <functional>

#include "runtime.h"

namespace quantune::cuda::emulation {

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> body);

}  // namespace quantune::cuda::emulation
