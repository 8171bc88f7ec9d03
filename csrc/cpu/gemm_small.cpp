// Products with few rows on one side (a decode step's activations, an adapter's rank) and k contiguous on the other: dot
// products over the many rows, each loaded once, none packed. The few rows are kept as float32.
#include <type_traits>

#include "gemm.h"
#include "gemm_pack.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int width = Vec::width;
// Accumulators: `few` rows at a time against `many` rows at a time.
#if defined(QT_CPU_AVX512)
constexpr int most_few = 4, many = 4;
#else
constexpr int most_few = 2, many = 4;
#endif
// Elements in a step over codes: one register of words, eight codes each.
constexpr int64_t code_run = width * 8;

int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

// The few rows of one product and the many: data of `dtype`, `stride` elements apart.
struct Operand {
  const float* few;
  int64_t few_stride;
  Factor rows;
  int64_t k;
  bool codes;  // few is in the order of codes, see order_for_codes
};

// Groups of rows follow one another in memory: what a later group needs is fetched while this one is summed, at least a page
// ahead, where the hardware's own prefetching stops.
inline int64_t prefetch_distance(int64_t row_bytes) {
  const int64_t group = many * row_bytes;
  return group <= 0 ? 0 : (4096 + group - 1) / group * group;
}
inline void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

template <int Few, class T>
void accumulate_rows(const Operand& o, int64_t few, const T* const (&row)[many], Vec (&sum)[Few][many]) {
  const float* x = o.few + few * o.few_stride;
  const int64_t ahead =
      prefetch_distance(o.rows.outer_stride * static_cast<int64_t>(sizeof(T))) / static_cast<int64_t>(sizeof(T));
  int64_t i = 0;
  for (; i + width <= o.k; i += width) {
    Vec w[many];
    for (int j = 0; j < many; j++) {
      prefetch(row[j] + i + ahead);
      w[j] = Vec::load(row[j] + i);
    }
    for (int f = 0; f < Few; f++) {
      const Vec v = Vec::load(x + f * o.few_stride + i);
      for (int j = 0; j < many; j++) sum[f][j] = fma(v, w[j], sum[f][j]);
    }
  }
  if (i == o.k) return;
  const int rest = static_cast<int>(o.k - i);
  for (int j = 0; j < many; j++) {
    const Vec w = Vec::load_partial(row[j] + i, rest);
    for (int f = 0; f < Few; f++) sum[f][j] = fma(Vec::load(x + f * o.few_stride + i), w, sum[f][j]);  // padded with zeros
  }
}

#if defined(QT_CODE_WORDS)

// A register of words holds the codes of code_run elements: word l those of elements 8 l to 8 l + 7. So element e of all words
// meets x[e], x[8 + e], …: the few rows are brought into that order once.
void order_for_codes(const float* from, int64_t k, float* to) {
  for (int64_t i = 0; i < k; i += code_run)
    for (int e = 0; e < 8; e++)
      for (int l = 0; l < width; l++) to[i + e * width + l] = i + 8 * l + e < k ? from[i + 8 * l + e] : 0.0f;
}

// The scales of a register of words: one for each 64 elements.
inline Vec scales_of(const FourBit& q, int64_t at, bool whole) {
#if defined(QT_CPU_AVX512)
  const __m512 first = _mm512_set1_ps(q.scale(at >> q.block_shift));
  return {whole ? _mm512_mask_blend_ps(0xff00, first, _mm512_set1_ps(q.scale((at + 64) >> q.block_shift))) : first};
#else
  (void)whole;
  return Vec::broadcast(q.scale(at >> q.block_shift));
#endif
}

template <int Few>
void accumulate_codes(const Operand& o, const FourBit& q, int64_t few, const int64_t (&start)[many], Vec (&sum)[Few][many]) {
  const CodeTable table = code_table(q.values);
  const float* x = o.few + few * o.few_stride;
  const int64_t ahead = prefetch_distance(o.rows.outer_stride / 2) / 4;
  for (int64_t i = 0; i < o.k; i += code_run) {
    const bool whole = o.k - i >= code_run;
    for (int j = 0; j < many; j++) {
      const float* codes = reinterpret_cast<const float*>(q.codes + (start[j] + i) / 2);
      prefetch(codes + ahead);
      const Vec words = whole ? Vec::load(codes) : Vec::load_partial(codes, 8);
      Vec part[Few];
      for (int f = 0; f < Few; f++) part[f] = Vec::zero();
      for (int e = 0; e < 8; e++) {
        const Vec w = look_up(table, words, e);
        for (int f = 0; f < Few; f++) part[f] = fma(w, Vec::load(x + f * o.few_stride + i + e * width), part[f]);
      }
      const Vec scales = scales_of(q, start[j] + i, whole);
      for (int f = 0; f < Few; f++) sum[f][j] = fma(part[f], scales, sum[f][j]);
    }
  }
}

#endif

// out[f][j] = the sum of sum[f][j]'s lanes.
template <int Few>
void reduce(Vec (&sum)[Few][many], float (&out)[Few][many]) {
  if constexpr (Few * many == width) {
    Vec square[width];
    for (int i = 0; i < width; i++) square[i] = sum[i / many][i % many];
    transpose(square);
    for (int half = width / 2; half > 0; half /= 2)
      for (int i = 0; i < half; i++) square[i] = square[i] + square[i + half];
    square[0].store(&out[0][0]);
  } else {
    for (int f = 0; f < Few; f++)
      for (int j = 0; j < many; j++) out[f][j] = reduce_add(sum[f][j]);
  }
}

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

template <int Few>
void few_against(const Work& work, int64_t few, int64_t row, float* line) {
  const int64_t left = work.many_rows - row;
  const int rows = static_cast<int>(left < many ? left : many);
  Vec sum[Few][many];
  for (int f = 0; f < Few; f++)
    for (int j = 0; j < many; j++) sum[f][j] = Vec::zero();
  for (int p = 0; p < work.count; p++) {
    const Operand& o = work.operands[p];
    int64_t start[many];  // rows past the last repeat it, and are not stored
    for (int j = 0; j < many; j++) start[j] = (row + (j < rows ? j : rows - 1)) * o.rows.outer_stride;
    if (is_four_bit(o.rows.dtype)) {
      const FourBit q(o.rows.data, o.rows.quant, o.rows.dtype);
#if defined(QT_CODE_WORDS)
      if (o.codes) {
        accumulate_codes<Few>(o, q, few, start, sum);
        continue;
      }
#endif
      const float* from[many];
      for (int j = 0; j < many; j++) {
        q.decode(start[j], o.k, line + j * o.k);
        from[j] = line + j * o.k;
      }
      accumulate_rows<Few>(o, few, from, sum);
      continue;
    }
    with_storage(o.rows.dtype, [&](auto type) {
      decltype(type) from[many];
      for (int j = 0; j < many; j++) from[j] = static_cast<decltype(type)>(o.rows.data) + start[j];
      accumulate_rows<Few>(o, few, from, sum);
    });
  }
  float out[Few][many];
  reduce<Few>(sum, out);
  store<Few>(work, few, row, rows, out);
}

void compute_rows(const Work& work, int64_t from, int64_t to, float* line) {
  for (int64_t row = from; row < to; row += many) {
    int64_t few = 0;
    for (; few + most_few <= work.few; few += most_few) few_against<most_few>(work, few, row, line);
#if defined(QT_CPU_AVX512)
    if (work.few - few == 3) few_against<3>(work, few, row, line), few += 3;
    if (work.few - few == 2) few_against<2>(work, few, row, line), few += 2;
#endif
    if (work.few - few == 1) few_against<1>(work, few, row, line);
  }
}

// The few rows as float32, each padded with zeros to whole registers, and in the order of codes where that is read.
bool prepare(qt_stream* stream, const Factor& few, int64_t count, const Factor& rows, int64_t k, float scale, Operand* out) {
  out->rows = rows;
  out->k = k;
  out->codes = false;
#if defined(QT_CODE_WORDS)
  out->codes = is_four_bit(rows.dtype) && rows.outer_stride % 64 == 0;
#endif
  const int64_t stride = round_up(k, code_run);
  float* data = stream->scratch_of<float>(count * stride + width);
  float* line = stream->scratch_of<float>(stride);
  if (!data || !line) return false;
  out->few = data;
  out->few_stride = stride;
  for (int64_t i = 0; i < count; i++) {
    float* to = out->codes ? line : data + i * stride;
    pack_strip(few, i, 1, 1, 0, k, scale, to, line);
    for (int64_t j = k; j < stride; j++) to[j] = 0.0f;
#if defined(QT_CODE_WORDS)
    if (out->codes) order_for_codes(line, k, data + i * stride);
#endif
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

qt_status gemm_small(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c) {
  Work work = {};
  work.few_is_row = m <= small_rows;
  for (int i = 0; i < count; i++) work.few_is_row = work.few_is_row && products[i].b.k_stride == 1;
  work.count = count;
  work.c = &c;
  work.few = work.few_is_row ? m : n;
  work.many_rows = work.few_is_row ? n : m;
  int64_t depth = 0;
  for (int i = 0; i < count; i++) {
    const Product& p = products[i];
    const Factor &few = work.few_is_row ? p.a : p.b, &rows = work.few_is_row ? p.b : p.a;
    if (!prepare(stream, few, work.few, rows, p.k, p.scale, &work.operands[i])) return out_of_scratch(stream, "matrix product");
    depth = depth > p.k ? depth : p.k;
  }
  // A row's sums do not depend on where the tasks are cut.
  const int64_t parts = 4 * stream->workers(), least = 16384 / (depth * work.few + 1) + 1;
  int64_t rows = round_up((work.many_rows + parts - 1) / parts, many);
  if (rows < least) rows = round_up(least, many);
  const int64_t line_size = round_up(many * depth + width, 16);
  float* lines = stream->scratch_of<float>(line_size * stream->workers());
  if (!lines) return out_of_scratch(stream, "matrix product");
  stream->parallel_for_worker((work.many_rows + rows - 1) / rows, [&](int64_t task, int worker) {
    const int64_t end = (task + 1) * rows;
    compute_rows(work, task * rows, end < work.many_rows ? end : work.many_rows, lines + line_size * worker);
  });
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
