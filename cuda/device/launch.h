// launch(kernel, grid, block, shared bytes, stream, arguments…): the only way to start a kernel. Arguments are converted to the
// kernel's parameter types. A grid without blocks is nothing to do. Limits: grid.y and grid.z up to 65535, 1024 threads a
// block.
#pragma once
#include <cuda_runtime.h>

#include <tuple>
#include <utility>

#include "../stream.h"

#if defined(QT_EMULATED)
#include "../emulation/launch.h"
#endif

namespace quantune::cuda {

namespace detail {

template <class... Parameters, size_t... I>
cudaError_t launch_tuple(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                         std::tuple<Parameters...>& values, std::index_sequence<I...>) {
  static_cast<void>(values);
#if defined(QT_EMULATED)
  return emulation::launch(grid, block, shared_bytes, stream, [kernel, values]() mutable { kernel(std::get<I>(values)...); });
#else
  // 48 KB are a block's without asking, its static arrays included, which take 16 at most.
  if (shared_bytes > 32 * 1024) {
    cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* pointers[sizeof...(I) + 1] = {&std::get<I>(values)...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes, stream);
#endif
}

}  // namespace detail

template <class... Parameters, class... Arguments>
qt_status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, qt_stream* stream,
                 Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "as many arguments as the kernel has parameters");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return QT_OK;
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  cudaError_t error = detail::launch_tuple(kernel, grid, block, shared_bytes, stream->stream, values,
                                           std::make_index_sequence<sizeof...(Parameters)>());
  return error == cudaSuccess ? QT_OK : stream->check(error, "a kernel could not be started");
}

}  // namespace quantune::cuda
