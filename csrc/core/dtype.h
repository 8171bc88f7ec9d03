#pragma once
#include <cstdint>

#include "abi.h"

namespace quantune {

constexpr int kDtypes = 9;

inline const char* dtype_name(int32_t dtype) {
  static const char* const names[kDtypes] = {"float32", "bfloat16", "float16", "int32",   "int8",
                                             "uint8",   "nf4",      "fp4",     "llm_int8"};
  return dtype >= 0 && dtype < kDtypes ? names[dtype] : "unknown";
}

// Bytes an element; 0 for the quantized types, whose size quant_layout.h knows.
inline int64_t dtype_bytes(int32_t dtype) {
  static const int64_t bytes[kDtypes] = {4, 2, 2, 4, 1, 1, 0, 0, 0};
  return bytes[dtype];
}

inline bool is_quantized(int32_t dtype) { return dtype >= QT_NF4 && dtype <= QT_LLM_INT8; }
inline bool is_float(int32_t dtype) { return dtype >= QT_FLOAT32 && dtype <= QT_FLOAT16; }

// Converts between float32, bfloat16 and float16 (round to nearest even), and the integer types to and from float32.
// False when there is no such conversion.
bool convert_elements(void* to, int32_t to_dtype, const void* from, int32_t from_dtype, int64_t elements);

}  // namespace quantune
