// Quantized weights; here those of 4 bits (the others: int8.cu), as bitsandbytes makes them, bit for bit: per block of 64 or
// 128 elements of the flattened weight the largest magnitude (absmax) and codes of 4 bits; with double quantization the absmax,
// less their mean, become 8-bit codes in blocks of 256. All kernels read and write each element once and are bound by memory,
// but for the mean (see there).
#include "device/launch.h"
#include "device/shared.h"
#include "device/warp.h"
#include "four_bit.cuh"
#include "gemm_kernels.cuh"
#include "int8.cuh"
#include "kernels.h"

namespace quantune::cuda {

namespace {

constexpr int kNested = 256, kThreads = 256;

struct MutableFourBit {
  uint8_t *codes, *absmax;
  float *nested_absmax, *nested_code, *offset;
  explicit MutableFourBit(const qt_tensor* t) {
    uint8_t* base = static_cast<uint8_t*>(t->data);
    codes = base + t->quant->codes;
    absmax = base + t->quant->absmax;
    nested_absmax = reinterpret_cast<float*>(base + t->quant->nested_absmax);
    nested_code = reinterpret_cast<float*>(base + t->quant->nested_code);
    offset = reinterpret_cast<float*>(base + t->quant->offset);
  }
};

// Codes in the ascending order of their values. FP4 has two zeros; bitsandbytes gives the "negative" one (8) to small positive
// values.
__device__ inline int ordered_code(int table, int i) {
  constexpr uint64_t fp4_order = 0x3254761809efcdabull;  // 11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3
  return table == 0 ? i : static_cast<int>(fp4_order >> (4 * i) & 15);
}

// The code of x: above how many of the limits, which lie halfway between neighbours, it is. A block of zeros gives NaN, which
// counts as 0.
__device__ inline int quantize_value(const float* limits, int table, float x) {
  if (x != x) x = 0.0f;
  int i = x > limits[7] ? 8 : 0;
  if (x > limits[i + 3]) i += 4;
  if (x > limits[i + 1]) i += 2;
  if (x > limits[i]) i += 1;
  return ordered_code(table, i);
}

// A warp a block, neighbouring elements in one lane.
template <int per_lane>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(uint8_t* codes, float* absmax, const void* w, int32_t dtype, int64_t n, int64_t blocks, int table) {
  QT_SHARED(float, limits, 15);
  if (threadIdx.x < 15) {
    const int i = static_cast<int>(threadIdx.x);
    limits[i] = (four_bit_values[table + ordered_code(table, i)] + four_bit_values[table + ordered_code(table, i + 1)]) * 0.5f;
  }
  __syncthreads();
  const int64_t block = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_index();
  const int64_t first = block * per_lane * kWarp + lane_index() * per_lane;
  float x[per_lane], most = 0.0f;
#pragma unroll
  for (int j = 0; j < per_lane; j++) {
    x[j] = first + j < n ? load_float(w, dtype, first + j) : 0.0f;
    const float magnitude = fabsf(x[j]);
    most = magnitude > most ? magnitude : most;
  }
  most = warp_max(most);
  if (block >= blocks) return;
  if (lane_index() == 0) absmax[block] = most;
  const float inverse = 1.0f / most;
#pragma unroll
  for (int j = 0; j < per_lane; j += 2) {
    if (first + j >= n) break;
    const int high = quantize_value(limits, table, x[j] * inverse);
    const int low = quantize_value(limits, table, first + j + 1 < n ? x[j + 1] * inverse : 0.0f);
    codes[(first + j) / 2] = static_cast<uint8_t>(high << 4 | low);
  }
}

// create_dynamic_map(signed=True): for each of seven decades the means of neighbours on an even grid over [0.1, 1], both signs,
// with 0 and 1; ascending. Rounded where PyTorch rounds: the grid is a fused multiply-add, the rest float32. 128 threads.
__global__ void __launch_bounds__(128) dynamic_code_kernel(float* code) {
  const int at = static_cast<int>(threadIdx.x);
  if (at == 127) {
    code[127] = 0.0f;
    code[255] = 1.0f;
    return;
  }
  int decade = 0;
  while ((2 << decade) - 1 <= at) decade++;
  const int j = at - (1 << decade) + 1, intervals = 1 << decade;
  const float start = 0.1f, step = (1.0f - start) / static_cast<float>(intervals);
  auto grid = [=](int i) {
    const bool lower = i < (intervals + 1) / 2;
    const double product = static_cast<double>(step) * (lower ? i : intervals - i);
    return static_cast<float>(lower ? static_cast<double>(start) + product : 1.0 - product);
  };
  const float decades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  const float value = decades[decade] * ((grid(j) + grid(j + 1)) * 0.5f);
  code[128 + at] = value;
  code[126 - at] = -value;
}

// The mean in the order PyTorch sums (eight lanes, four accumulators each, cascaded over four levels), so that it has its bits:
// 32 running sums, one a lane, in one warp. Latency of its loads bounds it: about 0.2 ms for a weight of 4096 x 14336.
__global__ void __launch_bounds__(kWarp) mean_kernel(float* mean, const float* x, int64_t n) {
  constexpr int lanes = 8, ways = 4, levels = 4;
  const int lane = lane_index();
  const int64_t vectors = n / lanes, rows = vectors / ways;
  float sum[levels] = {};
  int power = 0;
  while ((int64_t{1} << power) < rows) power++;
  power = power / levels > 4 ? power / levels : 4;
  const int64_t step = int64_t{1} << power;
  int64_t i = 0;
  while (i + step <= rows) {
    for (int64_t end = i + step; i < end; i += 16) {  // step is a multiple of 16
      float next[16];
#pragma unroll
      for (int j = 0; j < 16; j++) next[j] = x[(i + j) * kWarp + lane];
#pragma unroll
      for (int j = 0; j < 16; j++) sum[0] += next[j];
    }
#pragma unroll
    for (int level = 1; level < levels; level++) {
      sum[level] += sum[level - 1];
      sum[level - 1] = 0.0f;
      if (i & ((step - 1) << (level * power))) break;
    }
  }
  for (; i < rows; i++) sum[0] += x[i * kWarp + lane];
#pragma unroll
  for (int level = 1; level < levels; level++) sum[0] += sum[level];
  if (lane < lanes)
    for (int64_t v = rows * ways; v < vectors; v++) sum[0] += x[v * lanes + lane];
  float column = sum[0];
  for (int w = 1; w < ways; w++) column += __shfl_sync(kFullMask, sum[0], (lane + w * lanes) % kWarp);
  float total = 0.0f;
  for (int64_t j = vectors * lanes; j < n; j++) total += x[j];
  for (int l = 0; l < lanes; l++) total += __shfl_sync(kFullMask, column, l);
  if (lane == 0) *mean = total / static_cast<float>(n);
}

// bitsandbytes looks values of [-1, 1] up in a table of 65536: the code nearest to the table's point, not to the value.
__device__ inline int nearest_code(const float* code, float value) {
  const float position = __fmul_rn(__fmul_rn(__fadd_rn(value, 1.0f), 0.5f), 65535.0f);
  const int point = static_cast<int>(rintf(position < 0.0f ? 0.0f : position > 65535.0f ? 65535.0f : position));
  const double x = point / 65535.0 * 2.0 - 1.0;
  int low = 0, high = 255;  // the first code that the next one does not beat
  while (low < high) {
    const int middle = (low + high) / 2;
    if (x - code[middle] > code[middle + 1] - x)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kNested)
    quantize_absmax_kernel(uint8_t* codes, float* nested_absmax, const float* absmax, const float* nested_code,
                           const float* offset, int64_t blocks) {
  QT_SHARED(float, code, 256);
  code[threadIdx.x] = nested_code[threadIdx.x];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kNested + threadIdx.x;
  const float x = i < blocks ? absmax[i] - *offset : 0.0f;
  const float most = block_max(fabsf(x)), inverse = 1.0f / most;
  if (threadIdx.x == 0) nested_absmax[blockIdx.x] = most;
  if (i < blocks) codes[i] = static_cast<uint8_t>(most == 0.0f ? 0 : nearest_code(code, __fmul_rn(x, inverse)));
}

// Eight elements a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(T* out, const FourBit q, int64_t n, bool vector) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i >= n) return;
  const float scale = q.scale(i >> q.block_shift);
  if (!vector || i + 8 > n) {
    for (int64_t j = i; j < n && j < i + 8; j++) out[j] = from_float<T>(four_bit_values[q.table + q.code(j)] * scale);
    return;
  }
  const uint32_t word = *reinterpret_cast<const uint32_t*>(q.codes + i / 2);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    Pack<T, 4> four;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int at = half * 4 + j, shift = at / 2 * 8 + (at % 2 == 0 ? 4 : 0);
      four[j] = from_float<T>(four_bit_values[q.table + (word >> shift & 15)] * scale);
    }
    store_pack(out + i + half * 4, four);
  }
}

struct Part {
  void* to;
  const void* from;
  int64_t bytes;
};
struct Parts {
  Part part[4];
};

// Copies up to four runs of bytes, one a grid row.
__global__ void __launch_bounds__(kThreads)
    copy_parts_kernel(const __grid_constant__ Parts parts, float* offset, float offset_value) {
  const Part& p = parts.part[blockIdx.y];
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                threads = static_cast<int64_t>(gridDim.x) * kThreads;
  if (offset && thread == 0 && blockIdx.y == 0) *offset = offset_value;
  const bool vector = (reinterpret_cast<uintptr_t>(p.to) | reinterpret_cast<uintptr_t>(p.from)) % 16 == 0;
  const int64_t vectors = vector ? p.bytes / 16 : 0;
  for (int64_t i = thread; i < vectors; i += threads)
    store_pack(static_cast<uint32_t*>(p.to) + i * 4, load_pack<4>(static_cast<const uint32_t*>(p.from) + i * 4));
  for (int64_t i = vectors * 16 + thread; i < p.bytes; i += threads)
    static_cast<uint8_t*>(p.to)[i] = static_cast<const uint8_t*>(p.from)[i];
}

qt_status copy_parts(qt_stream* stream, const Parts& parts, float* offset, float offset_value) {
  int64_t bytes = 0;
  for (const Part& p : parts.part) bytes = p.bytes > bytes ? p.bytes : bytes;
  const int64_t blocks = ceil_div<int64_t>(bytes, kThreads * 16), most = 8 * stream->multiprocessors;
  const dim3 grid(static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most), 4);
  return launch(copy_parts_kernel, grid, kThreads, 0, stream, parts, offset, offset_value);
}

unsigned blocks_of(int64_t n, int64_t per_block) { return static_cast<unsigned>(ceil_div(n, per_block)); }

}  // namespace

qt_status quantize(qt_stream* stream, const qt_quantize_args* args) {
  stream->weight_changes(args->q->data);
  if (is_int8(args->q)) return int8_quantize(stream, args);
  const qt_tensor *w = args->w, *out = args->q;
  const qt_quant* layout = out->quant;
  const MutableFourBit q(out);
  const int64_t n = w->elements;
  if (n == 0) return QT_OK;
  float* absmax = reinterpret_cast<float*>(q.absmax);
  if (layout->double_quant && !(absmax = stream->scratch_of<float>(layout->blocks))) return stream->out_of_scratch();
  const unsigned grid = blocks_of(layout->blocks, kThreads / kWarp);
  const int table = out->dtype == QT_NF4 ? 0 : 16;
  auto* kernel = layout->block_size == 128 ? quantize_kernel<4> : quantize_kernel<2>;
  if (qt_status status =
          launch(kernel, grid, kThreads, 0, stream, q.codes, absmax, w->data, w->dtype, n, layout->blocks, table))
    return status;
  if (!layout->double_quant) return QT_OK;
  if (qt_status status = launch(dynamic_code_kernel, 1, 128, 0, stream, q.nested_code)) return status;
  if (qt_status status = launch(mean_kernel, 1, kWarp, 0, stream, q.offset, absmax, layout->blocks)) return status;
  return launch(quantize_absmax_kernel, blocks_of(layout->blocks, kNested), kNested, 0, stream, q.absmax, q.nested_absmax,
                absmax, q.nested_code, q.offset, layout->blocks);
}

qt_status dequantize(qt_stream* stream, const qt_dequantize_args* args) {
  if (is_int8(args->q)) return int8_dequantize(stream, args);
  const qt_tensor* out = args->w;
  const FourBit q(args->q->data, args->q->quant, args->q->dtype);
  const unsigned grid = blocks_of(out->elements, kThreads * 8);
  const bool vector = reinterpret_cast<uintptr_t>(out->data) % 16 == 0;
  return with_float(out->dtype, [&](auto type) {
    using T = decltype(type);
    return launch(dequantize_kernel<T>, grid, kThreads, 0, stream, data_of<T>(out), q, out->elements, vector);
  });
}

qt_status quantized_load(qt_stream* stream, const qt_quantized_load_args* args) {
  stream->weight_changes(args->q->data);
  if (is_int8(args->q)) return int8_load(stream, args);
  const qt_quant* layout = args->q->quant;
  const MutableFourBit q(args->q);
  Parts parts = {{{q.codes, args->codes->data, (args->q->elements + 1) / 2},
                  {q.absmax, args->absmax->data, layout->blocks * (layout->double_quant ? 1 : 4)}}};
  if (!layout->double_quant) return copy_parts(stream, parts, nullptr, 0.0f);
  parts.part[2] = {q.nested_absmax, args->nested_absmax->data, args->nested_absmax->elements * 4};
  parts.part[3] = {q.nested_code, args->nested_code->data, 256 * 4};
  return copy_parts(stream, parts, q.offset, static_cast<float>(args->offset));
}

qt_status quantized_export(qt_stream* stream, const qt_quantized_export_args* args) {
  if (is_int8(args->q)) return int8_export(stream, args);
  const qt_quant* layout = args->q->quant;
  const MutableFourBit q(args->q);
  Parts parts = {{{args->codes->data, q.codes, (args->q->elements + 1) / 2},
                  {args->absmax->data, q.absmax, layout->blocks * (layout->double_quant ? 1 : 4)}}};
  if (args->nested_absmax) parts.part[2] = {args->nested_absmax->data, q.nested_absmax, args->nested_absmax->elements * 4};
  if (args->nested_code) parts.part[3] = {args->nested_code->data, q.nested_code, 256 * 4};
  if (qt_status status = copy_parts(stream, parts, nullptr, 0.0f)) return status;
  if (!args->offset) return QT_OK;
  return copy_parts(stream, {{{args->offset->data, q.offset, 4}}}, nullptr, 0.0f);
}

}  // namespace quantune::cuda
