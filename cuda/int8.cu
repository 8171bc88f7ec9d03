// LLM.int8 without its products: weights made, read and written, and inputs rounded. Every kernel reads and writes each element
// once or twice and is bound by memory.
#include "device/launch.h"
#include "device/warp.h"
#include "gemm_kernels.cuh"
#include "int8.cuh"
#include "kernels.h"

namespace quantune::cuda {

namespace {

constexpr int kThreads = 256;

unsigned blocks_of(int64_t n, int64_t per_block) { return static_cast<unsigned>(ceil_div(n, per_block)); }

// 127 / largest, or 0 where that is no number to multiply by.
__device__ inline float codes_per_unit(float largest) {
  const float inverse = __fdiv_rn(127.0f, largest);
  return inverse <= 3.4e38f ? inverse : 0.0f;
}
__device__ inline int int8_code(float x, float per_unit) { return __float2int_rn(__fmul_rn(x, per_unit)); }

// ---- weights ----------------------------------------------------------------------------------------------------------

struct MutableInt8 {
  int8_t* codes;
  float* absmax;
  explicit MutableInt8(const qt_tensor* t)
      : codes(static_cast<int8_t*>(t->data) + t->quant->codes),
        absmax(reinterpret_cast<float*>(static_cast<char*>(t->data) + t->quant->absmax)) {}
};

// How the elements of a tensor lie: (output, input) at output * output_step + input * input_step.
struct Steps {
  int64_t output, input;
  explicit Steps(const qt_quant& layout)
      : output(layout.transposed ? 1 : layout.block_size), input(layout.transposed ? layout.blocks : 1) {}
};

// A block an output.
__global__ void __launch_bounds__(kThreads) quantize_kernel(int8_t* codes, float* absmax, const void* w, int32_t dtype,
                                                            const Steps steps, int64_t inputs, int64_t row_bytes) {
  const int64_t output = blockIdx.x, first = output * steps.output;
  float most = 0.0f;
  for (int64_t i = threadIdx.x; i < inputs; i += kThreads) {
    const float magnitude = fabsf(load_float(w, dtype, first + i * steps.input));
    most = magnitude > most ? magnitude : most;
  }
  most = block_max(most);
  if (threadIdx.x == 0) absmax[output] = most;
  const float per_unit = codes_per_unit(most);
  for (int64_t i = threadIdx.x; i < row_bytes; i += kThreads)
    codes[output * row_bytes + i] =
        static_cast<int8_t>(i < inputs ? int8_code(load_float(w, dtype, first + i * steps.input), per_unit) : 0);
}

// An element a thread, in the tensor's order.
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(void* out, int32_t dtype, const Int8Weight w, int64_t columns, bool transposed, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t row = i / columns, column = i % columns;
  store_float(out, dtype, i, transposed ? w.value(column, row) : w.value(row, column));
}

// Four inputs a thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_inputs_kernel(T* out, const Int8Weight w, int64_t first, int64_t columns, int64_t quads) {
  const int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (quad >= quads) return;
  const int64_t per_row = columns / 4, output = quad / per_row, column = quad % per_row * 4;
  const Pack<int8_t, 4> codes = load_pack<4>(w.codes + output * w.row_bytes + first + column);
  const float scale = w.scale(output);
  Pack<T, 4> values;
#pragma unroll
  for (int j = 0; j < 4; j++) values[j] = from_float<T>(__fmul_rn(static_cast<float>(codes[j]), scale));
  store_pack(out + output * columns + column, values);
}

// Rows of codes between a plain tensor and a weight, whose rows end in zeros.
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(int8_t* to, int64_t to_bytes, const int8_t* from, int64_t from_bytes, int64_t inputs, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t row = i / to_bytes, column = i % to_bytes;
  to[i] = column < inputs ? from[row * from_bytes + column] : int8_t{0};
}

__global__ void __launch_bounds__(kThreads) copy_scales_kernel(float* to, const float* from, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) to[i] = from[i];
}

qt_status copy_parts(qt_stream* stream, int8_t* to, int64_t to_bytes, const int8_t* from, int64_t from_bytes,
                     const qt_quant& layout, float* to_scales, const float* from_scales) {
  const int64_t n = layout.blocks * to_bytes;
  if (qt_status status = launch(copy_rows_kernel, blocks_of(n, kThreads), kThreads, 0, stream, to, to_bytes, from, from_bytes,
                                layout.block_size, n))
    return status;
  return launch(copy_scales_kernel, blocks_of(layout.blocks, kThreads), kThreads, 0, stream, to_scales, from_scales,
                layout.blocks);
}

// ---- inputs -----------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) clear_kernel(uint32_t* words, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) words[i] = 0;
}

// A block a row: its largest magnitude below the threshold, NaN where there is a NaN, and a bit of `mask` for each outlier's
// column.
__global__ void __launch_bounds__(kThreads)
    row_maxima_kernel(float* absmax, uint32_t* mask, const Int8Input in, int64_t k, float threshold) {
  const int64_t row = blockIdx.x;
  float most = 0.0f, bad = 0.0f;
  for (int64_t i = threadIdx.x; i < k; i += kThreads) {
    const float magnitude = fabsf(in.at(row, i));
    if (magnitude >= threshold)
      atomicOr(mask + i / 32, 1u << (i % 32));
    else if (magnitude > most)
      most = magnitude;
    if (magnitude != magnitude) bad = 1.0f;
  }
  most = block_max(most);
  bad = block_max(bad);
  if (threadIdx.x == 0) absmax[row] = bad > 0.0f ? __int_as_float(0x7fc00000) : most;
}

// The columns of the bits of `mask`, ascending, by one warp.
__device__ inline void list_columns(int32_t* columns, int32_t* count, const uint32_t* mask, int64_t words) {
  const int lane = lane_index();
  const int64_t per_lane = (words + kWarp - 1) / kWarp, first = lane * per_lane;
  const int64_t end = first + per_lane < words ? first + per_lane : words;
  int bits = 0;
  for (int64_t i = first; i < end; i++) bits += __popc(mask[i]);
  int before = bits;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kFullMask, before, static_cast<unsigned>(step));
    if (lane >= step) before += other;
  }
  if (lane == kWarp - 1) *count = before;
  int32_t* to = columns + (before - bits);
  for (int64_t i = first; i < end; i++)
    for (uint32_t word = mask[i]; word != 0; word &= word - 1)
      *to++ = static_cast<int32_t>(i * 32) + __ffs(static_cast<int>(word)) - 1;
}

// A block a row, four codes a thread; one more block lists the outliers' columns.
__global__ void __launch_bounds__(kThreads) codes_kernel(int8_t* codes, int32_t* columns, int32_t* count, const uint32_t* mask,
                                                         const Int8Input in, int64_t m, int64_t k, int64_t row_bytes) {
  const int64_t row = blockIdx.x;
  if (row == m) {
    if (threadIdx.x < kWarp) list_columns(columns, count, mask, (k + 31) / 32);
    return;
  }
  const float per_unit = codes_per_unit(in.absmax[row]);
  for (int64_t i = threadIdx.x * 4; i < row_bytes; i += kThreads * 4) {
    Pack<int8_t, 4> four;
    const uint32_t outliers = i < k ? mask[i / 32] >> (i % 32) : 0;
#pragma unroll
    for (int j = 0; j < 4; j++)
      four[j] = static_cast<int8_t>(i + j < k && !(outliers >> j & 1) ? int8_code(in.at(row, i + j), per_unit) : 0);
    store_pack(codes + row * row_bytes + i, four);
  }
}

}  // namespace

qt_status int8_input(qt_stream* stream, const Factor& x, int64_t m, const qt_tensor* weight, Int8Input* out) {
  const qt_quant& layout = *weight->quant;
  const int64_t k = layout.block_size, row_bytes = layout.row_bytes, words = (k + 31) / 32;
  const float threshold = layout.threshold > 0.0 ? static_cast<float>(layout.threshold) : __builtin_inff();
  int8_t* codes = stream->scratch_of<int8_t>(m * row_bytes + 16);
  float* absmax = stream->scratch_of<float>(m);
  uint32_t* mask = stream->scratch_of<uint32_t>(words + 1);
  int32_t* columns = stream->scratch_of<int32_t>(k + 1);
  if (!codes || !absmax || !mask || !columns) return stream->out_of_scratch();
  int32_t* count = columns + k;
  *out = {codes, absmax, columns, count, x.data, x.dtype, x.outer_stride};
  if (qt_status status = launch(clear_kernel, blocks_of(words, kThreads), kThreads, 0, stream, mask, words)) return status;
  const unsigned rows = static_cast<unsigned>(m);
  if (qt_status status = launch(row_maxima_kernel, rows, kThreads, 0, stream, absmax, mask, *out, k, threshold)) return status;
  return launch(codes_kernel, rows + 1, kThreads, 0, stream, codes, columns, count, mask, *out, m, k, row_bytes);
}

qt_status int8_dequantize_inputs(qt_stream* stream, const qt_tensor* w, int64_t first, int64_t columns, void* out,
                                 int32_t dtype) {
  const int64_t quads = w->quant->blocks * columns / 4;
  return with_activation(dtype, [&](auto type) {
    using T = decltype(type);
    return launch(dequantize_inputs_kernel<T>, blocks_of(quads, kThreads), kThreads, 0, stream, static_cast<T*>(out),
                  Int8Weight(w), first, columns, quads);
  });
}

qt_status int8_quantize(qt_stream* stream, const qt_quantize_args* args) {
  const qt_quant& layout = *args->q->quant;
  const MutableInt8 q(args->q);
  return launch(quantize_kernel, static_cast<unsigned>(layout.blocks), kThreads, 0, stream, q.codes, q.absmax, args->w->data,
                args->w->dtype, Steps(layout), layout.block_size, layout.row_bytes);
}

qt_status int8_dequantize(qt_stream* stream, const qt_dequantize_args* args) {
  const qt_tensor* out = args->w;
  return launch(dequantize_kernel, blocks_of(out->elements, kThreads), kThreads, 0, stream, out->data, out->dtype,
                Int8Weight(args->q), last_of(out), args->q->quant->transposed != 0, out->elements);
}

qt_status int8_load(qt_stream* stream, const qt_quantized_load_args* args) {
  const qt_quant& layout = *args->q->quant;
  const MutableInt8 q(args->q);
  return copy_parts(stream, q.codes, layout.row_bytes, data_of<int8_t>(args->codes), layout.block_size, layout, q.absmax,
                    data_of<float>(args->absmax));
}

qt_status int8_export(qt_stream* stream, const qt_quantized_export_args* args) {
  const qt_quant& layout = *args->q->quant;
  const MutableInt8 q(args->q);
  return copy_parts(stream, data_of<int8_t>(args->codes), layout.block_size, q.codes, layout.row_bytes, layout,
                    data_of<float>(args->absmax), q.absmax);
}

}  // namespace quantune::cuda
