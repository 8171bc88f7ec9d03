// Conversions at the edge, between host arrays and tensors; kernels have their own.
#include <cstring>

#include "dtype.h"
#define QT_CPU_VARIANT core
#include "../cpu/simd/types.h"

namespace quantune {
namespace {

using cpu::core::bfloat16;
using cpu::core::float16;
using cpu::core::from_float;
using cpu::core::to_float;

inline float to_float(int32_t x) { return static_cast<float>(x); }
inline float to_float(uint8_t x) { return static_cast<float>(x); }

template <class To, class From>
void convert(void* to, const void* from, int64_t n) {
  To* out = static_cast<To*>(to);
  const From* in = static_cast<const From*>(from);
  for (int64_t i = 0; i < n; i++) out[i] = from_float<To>(to_float(in[i]));
}

template <class To>
bool convert_from(void* to, const void* from, int32_t from_dtype, int64_t n) {
  switch (from_dtype) {
    case QT_FLOAT32:
      convert<To, float>(to, from, n);
      return true;
    case QT_BFLOAT16:
      convert<To, bfloat16>(to, from, n);
      return true;
    case QT_FLOAT16:
      convert<To, float16>(to, from, n);
      return true;
    case QT_INT32:
      convert<To, int32_t>(to, from, n);
      return true;
    case QT_INT8:
      convert<To, int8_t>(to, from, n);
      return true;
    case QT_UINT8:
      convert<To, uint8_t>(to, from, n);
      return true;
    default:
      return false;
  }
}

}  // namespace

bool convert_elements(void* to, int32_t to_dtype, const void* from, int32_t from_dtype, int64_t elements) {
  if (to_dtype == from_dtype && dtype_bytes(to_dtype) > 0) {
    std::memcpy(to, from, static_cast<size_t>(elements * dtype_bytes(to_dtype)));
    return true;
  }
  switch (to_dtype) {
    case QT_FLOAT32:
      return convert_from<float>(to, from, from_dtype, elements);
    case QT_BFLOAT16:
      return convert_from<bfloat16>(to, from, from_dtype, elements);
    case QT_FLOAT16:
      return convert_from<float16>(to, from, from_dtype, elements);
    default:
      return false;
  }
}

}  // namespace quantune
