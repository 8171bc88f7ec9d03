// A matrix of bfloat16 in device memory as the copy engine (TMA) sees it, made on the host and passed to kernels by value as
// `const __grid_constant__ TensorMap`.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#if defined(QT_EMULATED)

namespace quantune::cuda {

struct alignas(64) TensorMap {
  const void* data;
  int64_t rows, columns, stride;
  int box_rows;
};

// Boxes of `box_rows` rows x 64 columns (128 bytes, swizzled); beyond the matrix zeros. Rows are `stride` elements apart, a
// multiple of 8, and the data is 16-byte aligned. False where the driver refuses.
inline bool make_tensor_map(TensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  *map = {data, rows, columns, stride, box_rows};
  return true;
}

}  // namespace quantune::cuda

#else
#include <cuda.h>

namespace quantune::cuda {

using TensorMap = CUtensorMap;

inline bool make_tensor_map(TensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
      entry = nullptr;
    return reinterpret_cast<Encode>(entry);
  }();
  if (!encode) return false;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace quantune::cuda
#endif
