// Products with few rows on one side (a decode step's activations, an adapter's rank) and k contiguous on the other: dot
// products over the many rows, each loaded once, none packed. See gemm_dots.h.
#include <type_traits>

#include "gemm_dots.h"
#include "simd/reduce.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int width = Vec::width;

// Rows of which the scales are prepared at once.
constexpr int64_t chunk_rows = 32;

int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Work {
  Operand operands[2];
  int count;
  const Result* c;
  int64_t few, many_rows;
  bool few_is_row;  // the few rows are rows of C, else columns
};

// C (+)= a block of sums, `rows` of the many.
template <int Few>
void store(const Work& work, int64_t few, int64_t row, int rows, const float (&sums)[Few][many]) {
  const Result& c = *work.c;
  const int64_t few_step = work.few_is_row ? c.row_stride : c.column_stride;
  const int64_t row_step = work.few_is_row ? c.column_stride : c.row_stride;
  with_storage(c.dtype, [&](auto type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    T* to = static_cast<T*>(c.data) + few * few_step + row * row_step;
    for (int f = 0; f < Few; f++) {
      for (int j = 0; j < rows; j++) {
        T* at = to + f * few_step + j * row_step;
        float value = sums[f][j];
        if (c.bias) value += c.bias[work.few_is_row ? row + j : few + f];
        if (c.accumulate) value += to_float(*at);
        *at = from_float<T>(value);
      }
    }
  });
}

// The memory of a worker: lines for `many` decoded rows, and for each product the scales of a chunk of rows.
struct Memory {
  float *line, *scales[2];
  int64_t first;  // row of the chunk
};

template <int Few>
void few_against(const Work& work, int64_t few, int64_t row, const Memory& memory) {
  const int64_t left = work.many_rows - row;
  const Rows rows = {row, static_cast<int>(left < many ? left : many)};
  Vec sum[Few][many];
  for (int f = 0; f < Few; f++)
    for (int j = 0; j < many; j++) sum[f][j] = Vec::zero();
  for (int p = 0; p < work.count; p++) {
    const Operand& o = work.operands[p];
    if (is_four_bit(o.rows.dtype)) {
#if defined(QT_CODE_WORDS)
      const float* scales = memory.scales[p] + (row - memory.first) * (o.rows.outer_stride / 64);
      if (o.order == Order::kFloatsForCodes) {
        accumulate_codes<Few>(o, few, rows, scales, sum);
        continue;
      }
#if defined(QT_PAIRS)
      if (o.order == Order::kPairsForCodes) {
        accumulate_pair_codes<Few>(o, few, rows, scales, sum);
        continue;
      }
#endif
#endif
      const float* from[many];
      for (int j = 0; j < many; j++) {
        o.q.decode(rows.at(j) * o.rows.outer_stride, o.k, memory.line + j * o.k);
        from[j] = memory.line + j * o.k;
      }
      accumulate_rows<Few>(o, few, from, sum);
      continue;
    }
    if (o.rows.dtype == QT_LLM_INT8) {
      accumulate_int8<Few>(o, few, rows, sum);
      continue;
    }
    with_storage(o.rows.dtype, [&](auto type) {
      decltype(type) from[many];
      for (int j = 0; j < many; j++) from[j] = static_cast<decltype(type)>(o.rows.data) + rows.at(j) * o.rows.outer_stride;
#if defined(QT_PAIRS)
      if constexpr (std::is_same<decltype(type), const bfloat16*>::value) {
        if (o.order == Order::kPairs) return accumulate_pairs<Few>(o, few, from, sum);
      }
#endif
      accumulate_rows<Few>(o, few, from, sum);
    });
  }
  float out[Few][many];
  for (int f = 0; f < Few; f++) reduce_add(sum[f], out[f]);
  store<Few>(work, few, row, rows.count, out);
}

void compute_chunk(const Work& work, int64_t from, int64_t to, Memory memory) {
  memory.first = from;
#if defined(QT_CODE_WORDS)
  for (int p = 0; p < work.count; p++) {
    const Operand& o = work.operands[p];
    if (o.order != Order::kFloatsForCodes && o.order != Order::kPairsForCodes) continue;
    o.q.scales(from * o.rows.outer_stride, (to - from) * o.rows.outer_stride / 64, memory.scales[p]);
  }
#endif
  for (int64_t row = from; row < to; row += many) {
    int64_t few = 0;
    for (; few + most_few <= work.few; few += most_few) few_against<most_few>(work, few, row, memory);
#if defined(QT_CPU_AVX512)
    if (work.few - few == 3) few_against<3>(work, few, row, memory), few += 3;
    if (work.few - few == 2) few_against<2>(work, few, row, memory), few += 2;
#endif
    if (work.few - few == 1) few_against<1>(work, few, row, memory);
  }
}

Order order_of(const Factor& rows, int compute) {
#if defined(QT_PAIRS)
  const bool pairs = compute == QT_BFLOAT16;
#else
  constexpr bool pairs = false;
  (void)compute;
#endif
#if defined(QT_CODE_WORDS)
  if (is_four_bit(rows.dtype) && rows.outer_stride % 64 == 0) return pairs ? Order::kPairsForCodes : Order::kFloatsForCodes;
#endif
  return pairs && rows.dtype == QT_BFLOAT16 ? Order::kPairs : Order::kFloats;
}

// One of the few rows, k floats of which the rest up to a whole register is 0, as it is kept.
void keep_row(const float* from, int64_t k, Order order, int64_t stride, float* to) {
#if defined(QT_PAIRS)
  Pair* pairs = reinterpret_cast<Pair*>(to);
  if (order == Order::kPairsForCodes) return order_for_codes(from, k, pairs);
  if (order == Order::kPairs) {
    for (int64_t i = 0; i < stride; i += width)
      round_pairs(Vec::load(from + 2 * i), Vec::load(from + 2 * i + width)).store(pairs + i);
    return;
  }
#endif
#if defined(QT_CODE_WORDS)
  if (order == Order::kFloatsForCodes) return order_for_codes(from, k, to);
#endif
  (void)k;
  (void)order;
  std::memcpy(to, from, static_cast<size_t>(stride) * sizeof(float));
}

int64_t row_bytes(const Factor& f) {
  if (is_four_bit(f.dtype)) return f.outer_stride / 2;
  if (f.dtype == QT_LLM_INT8) return f.outer_stride;
  return with_storage(f.dtype, [&](auto type) { return static_cast<int64_t>(sizeof(*type)); }) * f.outer_stride;
}

bool prepare(qt_stream* stream, const Factor& few, int64_t count, const Factor& rows, int64_t k, float scale, int compute,
             Operand* out) {
  const Order order = order_of(rows, compute);
  const int64_t padded = round_up(k, code_run);
  const int64_t stride = order == Order::kPairs || order == Order::kPairsForCodes ? padded / 2 : padded;
  float* data = stream->scratch_of<float>(count * stride + width);
  float* line = stream->scratch_of<float>(padded + width);
  if (!data || !line) return false;
  *out = {};
  out->few = data;
  out->few_stride = stride;
  out->order = order;
  out->rows = rows;
  out->k = k;
  out->ahead = prefetch_distance(row_bytes(rows));
  if (is_four_bit(rows.dtype)) {
    out->q = FourBit(rows.data, rows.quant, rows.dtype);
#if defined(QT_CODE_WORDS) && !defined(QT_CPU_AVX512)
    out->bytes = &code_bytes(out->q.values);
#endif
  }
  for (int64_t i = 0; i < count; i++) {
    if (few.k_stride == 1 && !few.quant)
      widen(few.data, few.dtype, i * few.outer_stride, k, line, scale);
    else
      pack_strip(few, i, 1, 1, 0, k, scale, line, line);
    for (int64_t j = k; j < padded; j++) line[j] = 0.0f;
    keep_row(line, k, order, stride, data + i * stride);
  }
  return true;
}

}  // namespace

bool is_small(int64_t m, int64_t n, const Product* products, int count) {
  if (count > 2) return false;
  bool rows = m <= small_rows, columns = n <= small_columns;
  for (int i = 0; i < count; i++) {
    rows = rows && products[i].b.k_stride == 1;
    columns = columns && products[i].a.k_stride == 1;
  }
  return rows || columns;
}

qt_status gemm_small(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c,
                     int compute) {
  Work work = {};
  work.few_is_row = m <= small_rows;
  for (int i = 0; i < count; i++) work.few_is_row = work.few_is_row && products[i].b.k_stride == 1;
  work.count = count;
  work.c = &c;
  work.few = work.few_is_row ? m : n;
  work.many_rows = work.few_is_row ? n : m;
  int64_t depth = 0, stride = 0;
  for (int i = 0; i < count; i++) {
    const Product& p = products[i];
    const Factor &few = work.few_is_row ? p.a : p.b, &rows = work.few_is_row ? p.b : p.a;
    if (!prepare(stream, few, work.few, rows, p.k, p.scale, compute, &work.operands[i]))
      return out_of_scratch(stream, "matrix product");
    depth = depth > p.k ? depth : p.k;
    stride = stride > rows.outer_stride ? stride : rows.outer_stride;
  }
  // A row's sums do not depend on where the tasks are cut.
  const int64_t parts = 4 * stream->workers(), least = 16384 / (depth * work.few + 1) + 1;
  int64_t rows = round_up((work.many_rows + parts - 1) / parts, many);
  if (rows < least) rows = round_up(least, many);
  const int64_t line_size = round_up(many * depth + width, 16), scales_size = round_up(stride * chunk_rows / 64, 16);
  const int64_t size = line_size + 2 * scales_size;
  float* memory = stream->scratch_of<float>(size * stream->workers());
  if (!memory) return out_of_scratch(stream, "matrix product");
  stream->parallel_for_worker((work.many_rows + rows - 1) / rows, [&](int64_t task, int worker) {
    float *line = memory + size * worker, *scales = line + line_size;
    const int64_t end = smaller((task + 1) * rows, work.many_rows);
    for (int64_t row = task * rows; row < end; row += chunk_rows)
      compute_chunk(work, row, smaller(row + chunk_rows, end), {line, {scales, scales + scales_size}, row});
  });
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
