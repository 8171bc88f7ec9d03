// LLM.int8 (Dettmers et al. 2022, as in bitsandbytes) on the device. A weight: a row of int8 codes for each output, and its
// largest magnitude. An input: the same by its rows, but for the columns with an outlier, which are multiplied in floating
// point.
#pragma once
#include "linear.cuh"

namespace quantune::cuda {

inline bool is_int8(const qt_tensor* t) { return t->dtype == QT_LLM_INT8; }

// Passed to kernels by value. Rows of codes are `row_bytes` apart, a multiple of 64, zeros behind the k codes.
struct Int8Weight {
  const int8_t* codes;
  const float* absmax;
  int64_t row_bytes;

  Int8Weight() = default;
  explicit Int8Weight(const qt_tensor* w)
      : codes(static_cast<const int8_t*>(w->data) + w->quant->codes),
        absmax(reinterpret_cast<const float*>(static_cast<const char*>(w->data) + w->quant->absmax)),
        row_bytes(w->quant->row_bytes) {}
  __device__ float scale(int64_t output) const { return __fmul_rn(absmax[output], 1.0f / 127.0f); }
  __device__ float value(int64_t output, int64_t input) const {
    return __fmul_rn(static_cast<float>(codes[output * row_bytes + input]), scale(output));
  }
};

// x [m, k] as the products take it, in scratch memory.
struct Int8Input {
  const int8_t* codes;      // [m, row_bytes], zeros in the columns below
  const float* absmax;      // [m]
  const int32_t* outliers;  // [*count], the columns that have one, ascending
  const int32_t* count;
  const void* x;
  int32_t dtype;
  int64_t stride;

  __device__ float at(int64_t row, int64_t column) const {
    const int64_t i = row * stride + column;
    return dtype == QT_BFLOAT16 ? to_float(static_cast<const bf16*>(x)[i]) : static_cast<const float*>(x)[i];
  }
};
qt_status int8_input(qt_stream* stream, const Factor& x, int64_t m, const qt_tensor* weight, Int8Input* out);

// As linear_forward and linear_input_gradient (linear.cuh).
qt_status int8_forward(qt_stream* stream, const Linear& w, const Factor& x, const Factor& lora_x, int64_t m, const Result& y,
                       const Result* h);
qt_status int8_input_gradient(qt_stream* stream, const Linear& w, const Factor& dy, const Result* t, int64_t m,
                              const Result& dx);

// Inputs [first, first + columns) of all outputs, dequantized: out [outputs, columns], bfloat16 or float32.
qt_status int8_dequantize_inputs(qt_stream* stream, const qt_tensor* w, int64_t first, int64_t columns, void* out,
                                 int32_t dtype);
qt_status int8_quantize(qt_stream* stream, const qt_quantize_args* args);
qt_status int8_dequantize(qt_stream* stream, const qt_dequantize_args* args);
qt_status int8_load(qt_stream* stream, const qt_quantized_load_args* args);
qt_status int8_export(qt_stream* stream, const qt_quantized_export_args* args);

}  // namespace quantune::cuda
