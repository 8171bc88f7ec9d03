// LLM.int8 (Dettmers et al. 2022, as in bitsandbytes): weights of one byte with a scale an output, and inputs rounded to the
// same grid of 127 steps to either side of 0.
//
// What the integers are multiplied as is float32: their products are whole numbers that it holds, so the sums differ from those
// of integers by its rounding alone, and the tiles, the bias and the adapter of every other product serve here too.
#pragma once
#include "gemm.h"
#include "simd/pairs.h"

namespace quantune::cpu::QT_CPU_VARIANT {

inline bool is_int8(const qt_tensor* t) { return t->dtype == QT_LLM_INT8; }

// Outer index: output, or input. The codes lie by outputs, whichever way the tensor does.
inline Factor int8_outputs(const qt_tensor* w) { return {w->data, w->dtype, w->quant, w->quant->row_bytes, 1}; }
inline Factor int8_inputs(const qt_tensor* w) { return {w->data, w->dtype, w->quant, 1, w->quant->row_bytes}; }

struct Int8 {
  const int8_t* codes;
  const float* absmax;
  Int8(const void* data, const qt_quant* q) {
    const uint8_t* base = static_cast<const uint8_t*>(data);
    codes = reinterpret_cast<const int8_t*>(base + q->codes);
    absmax = reinterpret_cast<const float*>(base + q->absmax);
  }
  float scale(int64_t output) const { return absmax[output] * (1.0f / 127.0f); }
};

// In the place of x [m, k]: rounded to the codes that LLM.int8 multiplies, times their scale, but for the columns that have an
// outlier in some row. A copy in scratch memory.
qt_status int8_input(qt_stream* stream, const Factor& x, int64_t m, int64_t k, double threshold, Factor* out);

// As pack_strip (gemm_pack.h) for a factor of LLM.int8; as pairs with inputs as outer indices alone, since only the backward,
// which multiplies by the dequantized weight, may round to bfloat16.
void pack_int8(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out);
#if defined(QT_PAIRS)
void pack_int8(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, Pair* out);
#endif

// 127 / largest, or 0 where that is no number to multiply by.
inline float codes_per_unit(float largest) {
  const float inverse = 127.0f / largest;
  return inverse <= 3.4e38f ? inverse : 0.0f;
}

qt_status int8_quantize(qt_stream* stream, const qt_quantize_args* args);
qt_status int8_dequantize(qt_stream* stream, const qt_dequantize_args* args);
void int8_load(const qt_quantized_load_args* args);
void int8_export(const qt_quantized_export_args* args);

}  // namespace quantune::cpu::QT_CPU_VARIANT
