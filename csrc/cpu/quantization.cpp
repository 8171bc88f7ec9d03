// Quantized weights; here those of 4 bits (the others: int8_weights.cpp), as bitsandbytes makes them: per block of 64 or 128
// elements of the flattened weight the largest magnitude (absmax) and codes of 4 bits; with double quantization the absmax,
// less their mean, become 8-bit codes in blocks of 256.
#include <cmath>
#include <type_traits>

#include "four_bit.h"
#include "gemm.h"
#include "int8.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int64_t nested_block = 256;

struct MutableFourBit {
  uint8_t* codes;
  uint8_t* absmax;
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

// Halfway between neighbours of the code in ascending order, and the codes in that order. FP4 has two zeros; bitsandbytes
// gives the "negative" one (8) to small positive values.
struct Thresholds {
  float limit[15];
  uint8_t code[16];
};

Thresholds thresholds(int dtype) {
  static constexpr uint8_t fp4_order[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  const float* values = dtype == QT_NF4 ? nf4_values : fp4_values;
  Thresholds t;
  for (int i = 0; i < 16; i++) t.code[i] = dtype == QT_NF4 ? static_cast<uint8_t>(i) : fp4_order[i];
  for (int i = 0; i < 15; i++) t.limit[i] = (values[t.code[i]] + values[t.code[i + 1]]) * 0.5f;
  return t;
}

// The code of x: above how many of the limits it lies. A block of zeros gives NaN, which counts as 0.
uint8_t quantize_value(const Thresholds& t, float x) {
  if (x != x) x = 0.0f;
  int i = x > t.limit[7] ? 8 : 0;
  if (x > t.limit[i + 3]) i += 4;
  if (x > t.limit[i + 1]) i += 2;
  if (x > t.limit[i]) i += 1;
  return t.code[i];
}

float largest_magnitude(const float* x, int64_t n) {
  float most = 0.0f;
  for (int64_t i = 0; i < n; i++) {
    const float a = x[i] < 0.0f ? -x[i] : x[i];
    most = a > most ? a : most;
  }
  return most;
}

// create_dynamic_map(signed=True): for each of seven decades the means of neighbours on an even grid over [0.1, 1], both
// signs, with 0 and 1; ascending. Rounded where PyTorch rounds: the grid is a fused multiply-add, the rest float32.
void dynamic_code(float* code) {
  static constexpr float decades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  code[127] = 0.0f;
  code[255] = 1.0f;
  int at = 0;
  for (int i = 0; i < 7; i++) {
    const int intervals = 1 << i;
    const float start = 0.1f, step = (1.0f - start) / static_cast<float>(intervals);
    const auto grid = [=](int j) {
      const double product = static_cast<double>(step) * (j < (intervals + 1) / 2 ? j : intervals - j);
      return static_cast<float>(j < (intervals + 1) / 2 ? static_cast<double>(start) + product : 1.0 - product);
    };
    for (int j = 0; j < intervals; j++, at++) {
      const float value = decades[i] * ((grid(j) + grid(j + 1)) * 0.5f);
      code[128 + at] = value;
      code[126 - at] = -value;
    }
  }
}

// The sum in the order PyTorch takes it (eight lanes, four accumulators each, cascaded), so that the mean has its bits.
struct CascadeSum {
  static constexpr int lanes = 8, ways = 4, levels = 4;
  float sum[levels][ways][lanes] = {};

  void add_rows(const float* x, int64_t rows) {
    int power = 0;
    while ((int64_t{1} << power) < rows) power++;
    power = power / levels > 4 ? power / levels : 4;
    const int64_t step = int64_t{1} << power;
    int64_t i = 0;
    while (i + step <= rows) {
      for (int64_t j = 0; j < step; j++, i++) add_row(x + i * ways * lanes);
      for (int level = 1; level < levels; level++) {
        fold(level - 1, level);
        if (i & ((step - 1) << (level * power))) break;
      }
    }
    for (; i < rows; i++) add_row(x + i * ways * lanes);
    for (int level = 1; level < levels; level++) fold(level, 0);
  }
  void add_row(const float* x) {
    for (int w = 0; w < ways; w++)
      for (int l = 0; l < lanes; l++) sum[0][w][l] += x[w * lanes + l];
  }
  void fold(int from, int to) {
    for (int w = 0; w < ways; w++)
      for (int l = 0; l < lanes; l++) sum[to][w][l] += sum[from][w][l], sum[from][w][l] = 0.0f;
  }
};

float mean(const float* x, int64_t n) {
  constexpr int lanes = CascadeSum::lanes, ways = CascadeSum::ways;
  CascadeSum cascade;
  const int64_t vectors = n / lanes, rows = vectors / ways;
  cascade.add_rows(x, rows);
  float(*sum)[lanes] = cascade.sum[0];
  for (int64_t v = rows * ways; v < vectors; v++)
    for (int l = 0; l < lanes; l++) sum[0][l] += x[v * lanes + l];
  for (int w = 1; w < ways; w++)
    for (int l = 0; l < lanes; l++) sum[0][l] += sum[w][l];
  float total = 0.0f;
  for (int64_t i = vectors * lanes; i < n; i++) total += x[i];
  for (int l = 0; l < lanes; l++) total += sum[0][l];
  return total / static_cast<float>(n);
}

// bitsandbytes looks values of [-1, 1] up in a table of 65536: the code nearest to the table's point, not to the value.
void fill_lookup(const float* code, uint8_t* lookup) {
  int at = 0;
  for (int i = 0; i < 65536; i++) {
    const double x = i / 65535.0 * 2.0 - 1.0;
    while (at < 255 && x - code[at] > code[at + 1] - x) at++;
    lookup[i] = static_cast<uint8_t>(at);
  }
}

void quantize_absmax(float* absmax, int64_t blocks, const uint8_t* lookup, const MutableFourBit& q) {
  const float offset = mean(absmax, blocks);
  *q.offset = offset;
  for (int64_t i = 0; i < blocks; i++) absmax[i] -= offset;
  for (int64_t first = 0; first < blocks; first += nested_block) {
    const int64_t count = blocks - first < nested_block ? blocks - first : nested_block;
    const float most = largest_magnitude(absmax + first, count), inverse = 1.0f / most;
    q.nested_absmax[first / nested_block] = most;
    for (int64_t i = first; i < first + count; i++) {
      if (most == 0.0f) {
        q.absmax[i] = 0;
        continue;
      }
      const float position = (absmax[i] * inverse + 1.0f) * 0.5f * 65535.0f;
      q.absmax[i] = lookup[static_cast<int>(std::nearbyint(position < 0.0f       ? 0.0f
                                                           : position > 65535.0f ? 65535.0f
                                                                                 : position))];
    }
  }
}

}  // namespace

qt_status quantize(qt_stream* stream, const qt_quantize_args* args) {
  if (is_int8(args->q)) return int8_quantize(stream, args);
  const qt_tensor *w = args->w, *out = args->q;
  const qt_quant* layout = out->quant;
  const MutableFourBit q(out);
  const int64_t n = w->elements, block = layout->block_size;
  if (n == 0) return QT_OK;
  float* absmax = reinterpret_cast<float*>(q.absmax);
  uint8_t* lookup = nullptr;
  if (layout->double_quant) {
    absmax = stream->scratch_of<float>(layout->blocks);
    lookup = stream->scratch_of<uint8_t>(65536);
    if (!absmax || !lookup) return out_of_scratch(stream, "quantize");
  }
  const Thresholds limits = thresholds(out->dtype);
  constexpr int64_t blocks_per_task = 128;
  stream->parallel_for((layout->blocks + blocks_per_task - 1) / blocks_per_task, [&](int64_t task) {
    float x[128];
    const int64_t end = (task + 1) * blocks_per_task < layout->blocks ? (task + 1) * blocks_per_task : layout->blocks;
    for (int64_t b = task * blocks_per_task; b < end; b++) {
      const int64_t start = b * block, count = n - start < block ? n - start : block;
      widen(w->data, w->dtype, start, count, x);
      const float most = largest_magnitude(x, count), inverse = 1.0f / most;
      absmax[b] = most;
      uint8_t* codes = q.codes + start / 2;
      for (int64_t i = 0; i < count; i += 2) {
        const int high = quantize_value(limits, x[i] * inverse);
        const int low = i + 1 < count ? quantize_value(limits, x[i + 1] * inverse) : quantize_value(limits, 0.0f);
        codes[i / 2] = static_cast<uint8_t>(high << 4 | low);
      }
    }
  });
  if (layout->double_quant) {
    dynamic_code(q.nested_code);
    fill_lookup(q.nested_code, lookup);
    quantize_absmax(absmax, layout->blocks, lookup, q);
  }
  return QT_OK;
}

qt_status dequantize(qt_stream* stream, const qt_dequantize_args* args) {
  if (is_int8(args->q)) return int8_dequantize(stream, args);
  const qt_tensor *out = args->w, *from = args->q;
  const FourBit q(from->data, from->quant, from->dtype);
  constexpr int64_t step = 4096;
  stream->parallel_for((out->elements + step - 1) / step, [&](int64_t task) {
    const int64_t start = task * step, count = out->elements - start < step ? out->elements - start : step;
    if (out->dtype == QT_FLOAT32) return q.decode(start, count, static_cast<float*>(out->data) + start);
    float values[step];
    q.decode(start, count, values);
    with_storage(out->dtype, [&](auto type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      T* to = static_cast<T*>(out->data) + start;
      for (int64_t i = 0; i < count; i++) to[i] = from_float<T>(values[i]);
    });
  });
  return QT_OK;
}

qt_status quantized_load(qt_stream*, const qt_quantized_load_args* args) {
  if (is_int8(args->q)) return int8_load(args), QT_OK;
  const qt_quant* layout = args->q->quant;
  const MutableFourBit q(args->q);
  std::memcpy(q.codes, args->codes->data, static_cast<size_t>((args->q->elements + 1) / 2));
  std::memcpy(q.absmax, args->absmax->data, static_cast<size_t>(layout->blocks * (layout->double_quant ? 1 : 4)));
  if (layout->double_quant) {
    std::memcpy(q.nested_absmax, args->nested_absmax->data, static_cast<size_t>(args->nested_absmax->elements) * 4);
    std::memcpy(q.nested_code, args->nested_code->data, 256 * 4);
    *q.offset = static_cast<float>(args->offset);
  }
  return QT_OK;
}

qt_status quantized_export(qt_stream*, const qt_quantized_export_args* args) {
  if (is_int8(args->q)) return int8_export(args), QT_OK;
  const qt_quant* layout = args->q->quant;
  const MutableFourBit q(args->q);
  std::memcpy(args->codes->data, q.codes, static_cast<size_t>((args->q->elements + 1) / 2));
  std::memcpy(args->absmax->data, q.absmax, static_cast<size_t>(layout->blocks * (layout->double_quant ? 1 : 4)));
  if (args->nested_absmax)
    std::memcpy(args->nested_absmax->data, q.nested_absmax, static_cast<size_t>(args->nested_absmax->elements) * 4);
  if (args->nested_code) std::memcpy(args->nested_code->data, q.nested_code, 256 * 4);
  if (args->offset) std::memcpy(args->offset->data, q.offset, 4);
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
