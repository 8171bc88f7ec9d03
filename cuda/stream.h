// What a launcher gets: the CUDA stream, the device's properties, scratch memory, and ways to say what went wrong, at once
// (fail) or when the kernel finds out (report).
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../csrc/core/abi.h"
#include "device/report.h"

struct qt_stream {
  const qt_host* host;
  cudaStream_t stream;

  int compute;           // 80, 86, 89, 90, …: compute capability times ten
  int multiprocessors;   // of the device
  int64_t shared_limit;  // bytes of dynamic shared memory that one block may have
  int64_t l2_bytes;

  // Device memory, 256-byte aligned, for the operation that asks; the next operation may get the same memory (all run in
  // order on one stream). Null when there is not enough: return out_of_scratch(). Holds garbage.
  void* scratch(int64_t bytes);
  template <class T>
  T* scratch_of(int64_t count) {
    return static_cast<T*>(scratch(count * static_cast<int64_t>(sizeof(T))));
  }
  qt_status out_of_scratch();

  // A copy of host data in device memory that lives as scratch does: for tables of pointers and sizes (lists of tensors), which
  // kernels read like any other memory. Valid in recorded programs too. Null when there is not enough memory.
  template <class T>
  const T* stage(const T* host_data, int64_t count) {
    return static_cast<const T*>(stage_bytes(host_data, count * static_cast<int64_t>(sizeof(T))));
  }

  // A place of so many bytes for a copy of a 4-bit weight in bfloat16, the same from operation to operation until the weight is
  // freed or overwritten, or memory is short. Null where there is to be none (see WeightCopies). *fresh: it holds garbage, and
  // the operation fills it first of all, or takes its word back by weight_changes.
  void* weight_copy(const void* weight, int64_t bytes, bool* fresh);
  // The operation overwrites the weight.
  void weight_changes(const void* weight);

  // The way for a kernel to refuse what only it can see (a token id out of range): pass the result to the kernel by value and
  // call report.raise(a, b, c) there. `format` is a literal with up to three %lld. The operation then counts as failed with
  // QT_INVALID_ARGUMENT: its outputs are poisoned, and so is what was computed from them, as on the CPU. The kernel goes on; it
  // must not read or write out of bounds, and writes NaN into float outputs that the bad value leaves without a result.
  quantune::cuda::Report report(const char* format);

  // Remembers why the operation failed (printf-like) and returns `status`.
  template <class... Values>
  qt_status fail(qt_status status, const char* format, Values... values) {
    return host->fail(this, status, format, values...);
  }
  // QT_OK, or the failure of a call of the CUDA runtime, in words.
  qt_status check(cudaError_t error, const char* what);

  const void* stage_bytes(const void* host_data, int64_t bytes);
};
