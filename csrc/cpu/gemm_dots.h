// What gemm_small sums: `few` rows, kept as floats or as pairs of bfloat16, against rows of a Factor as they lie in memory.
#pragma once
#include "gemm.h"
#include "gemm_pack.h"
#include "int8.h"
#include "simd/prefetch.h"

// Of a loop whose body is so long that GCC would not unroll it.
#if defined(__GNUC__) && !defined(__clang__)
#define QT_UNROLLED _Pragma("GCC unroll 8")
#else
#define QT_UNROLLED
#endif

namespace quantune::cpu::QT_CPU_VARIANT {

// Accumulators: `few` rows at a time against `many` rows at a time.
#if defined(QT_CPU_AVX512)
constexpr int most_few = 4, many = 4;
#else
constexpr int most_few = 2, many = 4;
#endif
// Elements in a step over codes: one register of words, eight codes each.
constexpr int64_t code_run = Vec::width * 8;

// How the few rows are kept: as floats or as pairs; in the order of k, or in that in which codes are looked up.
enum class Order { kFloats, kFloatsForCodes, kPairs, kPairsForCodes };

// The few rows of one product, padded with zeros to whole registers, and the many.
struct Operand {
  const void* few;
  int64_t few_stride;  // in words: floats or pairs
  Order order;
  Factor rows;
  int64_t k;
  int64_t ahead;  // bytes: how far what is fetched lies ahead of what is summed
  FourBit q;      // of rows of 4 bits
#if defined(QT_CODE_WORDS) && !defined(QT_CPU_AVX512)
  const CodeBytes* bytes;
#endif

  template <class Word>
  const Word* few_row(int64_t i) const {
    return static_cast<const Word*>(few) + i * few_stride;
  }
};

// `many` rows from `first` on, of which there are only `count`: those past the last repeat it, and are not stored. Kept in two
// registers: row numbers that go through memory hold up the loads of the next group until this one is done.
struct Rows {
  int64_t first;
  int count;

  int step(int j) const { return j < count ? j : count - 1; }
  int64_t at(int j) const { return first + step(j); }
};

// Groups of rows follow one another in memory: what a later group needs is fetched while this one is summed, at least a page
// ahead, where the hardware's own prefetching stops.
inline int64_t prefetch_distance(int64_t row_bytes) {
  const int64_t group = many * row_bytes;
  return group <= 0 ? 0 : (4096 + group - 1) / group * group;
}
template <class T>
inline void prefetch_ahead(const Operand& o, const T* at) {
  prefetch(reinterpret_cast<const char*>(at) + o.ahead);
}

template <int Few, class T>
void accumulate_rows(const Operand& o, int64_t few, const T* const (&row)[many], Vec (&sum)[Few][many]) {
  const float* x = o.few_row<float>(few);
  int64_t i = 0;
  for (; i + Vec::width <= o.k; i += Vec::width) {
    Vec w[many];
    for (int j = 0; j < many; j++) {
      prefetch_ahead(o, row[j] + i);
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

// Rows of codes of LLM.int8, each with a scale.
template <int Few>
void accumulate_int8(const Operand& o, int64_t few, Rows rows, Vec (&sum)[Few][many]) {
  const Int8 w(o.rows.data, o.rows.quant);
  const int8_t* from[many];
  for (int j = 0; j < many; j++) from[j] = w.codes + rows.at(j) * o.rows.outer_stride;
  Vec part[Few][many];
  for (int f = 0; f < Few; f++)
    for (int j = 0; j < many; j++) part[f][j] = Vec::zero();
  accumulate_rows<Few>(o, few, from, part);
  for (int j = 0; j < many; j++) {
    const Vec scale = Vec::broadcast(w.scale(rows.at(j)));
    for (int f = 0; f < Few; f++) sum[f][j] = fma(part[f][j], scale, sum[f][j]);
  }
}

#if defined(QT_CODE_WORDS)

// A register of codes is looked up in eight steps, each of which yields a vector of elements; the few rows are brought into
// that order once. With AVX-512, step e yields element e of each 32-bit word, elements 8 l to 8 l + 7 being in word l; where k
// ends within a run, its 64 elements come twice: two of the many rows share a register then, half each. `from` may be read up
// to a register beyond its end.
inline void order_for_codes(const float* from, int64_t k, float* to) {
  for (int64_t i = 0; i < k; i += code_run, to += code_run) {
#if defined(QT_CPU_AVX512)
    const int64_t words = k - i < code_run ? (k - i) / 8 : Vec::width;
    Vec square[Vec::width];
    for (int64_t l = 0; l < Vec::width; l++) square[l] = Vec::load(from + i + 8 * (l < words ? l : l - words));
    transpose(square);
    for (int e = 0; e < 8; e++) square[e].store(to + e * Vec::width);
#else
    for (int v = 0; v < 8; v++)
      for (int l = 0; l < Vec::width; l++) to[v * Vec::width + l] = from[i + element_of_plane(v, l)];
#endif
  }
}

// The scales of a register of words of which the first 64 elements have that at `scale`.
#if defined(QT_CPU_AVX512)
inline Vec scales_of_halves(const float* low, const float* high) {
  return {_mm512_mask_broadcastss_ps(_mm512_set1_ps(*low), 0xff00, _mm_load_ss(high))};
}
inline Vec scales_of_words(const float* scale) { return scales_of_halves(scale, scale + 1); }
#else
inline Vec scales_of_words(const float* scale) { return Vec::broadcast(*scale); }
#endif

// part += the products of the few rows with a register of codes of each of Many rows.
#if defined(QT_CPU_AVX512)
template <int Few, int Many>
inline void multiply_codes(CodeTable table, const Vec (&words)[Many], const float* x, int64_t stride, Vec (&part)[Few][Many]) {
  QT_UNROLLED for (int e = 0; e < 8; e++) {
    QT_UNROLLED for (int j = 0; j < Many; j++) {
      const Vec w = look_up(table, words[j], e);
      for (int f = 0; f < Few; f++) part[f][j] = fma(w, Vec::load(x + f * stride + e * Vec::width), part[f][j]);
    }
  }
}
#else
template <int Few, int Many>
inline void multiply_codes(const BytePlanes& planes, const Vec (&words)[Many], const float* x, int64_t stride,
                           Vec (&part)[Few][Many]) {
  QT_UNROLLED for (int j = 0; j < Many; j++) {
    look_up_all(planes, words[j], [&](int v, Vec w) {
      for (int f = 0; f < Few; f++) part[f][j] = fma(w, Vec::load(x + f * stride + v * Vec::width), part[f][j]);
    });
  }
}
#endif

template <int Few>
void accumulate_codes(const Operand& o, int64_t few, Rows rows, const float* scales, Vec (&sum)[Few][many]) {
#if defined(QT_CPU_AVX512)
  constexpr int together = Few <= 2 ? many : 1;  // rows of which each vector of the few serves all
  const CodeTable table = code_table(o.q.values);
#else
  constexpr int together = 1;
  const BytePlanes table(*o.bytes);
#endif
  const float* x = o.few_row<float>(few);
  const uint8_t* codes[many];
  const float* scale[many];
  for (int j = 0; j < many; j++) {
    codes[j] = o.q.codes + rows.at(j) * (o.rows.outer_stride / 2);
    scale[j] = scales + rows.step(j) * (o.rows.outer_stride / 64);
  }
  int64_t i = 0;
  for (; i + code_run <= o.k; i += code_run, x += code_run) {
    for (int first = 0; first < many; first += together) {
      Vec words[together], part[Few][together];
      for (int j = 0; j < together; j++) {
        prefetch_ahead(o, codes[first + j] + i / 2);
        words[j] = Vec::load(reinterpret_cast<const float*>(codes[first + j] + i / 2));
        for (int f = 0; f < Few; f++) part[f][j] = Vec::zero();
      }
      multiply_codes<Few>(table, words, x, o.few_stride, part);
      for (int j = 0; j < together; j++) {
        const Vec factor = scales_of_words(scale[first + j] + i / 64);
        for (int f = 0; f < Few; f++) sum[f][first + j] = fma(part[f][j], factor, sum[f][first + j]);
      }
    }
  }
#if defined(QT_CPU_AVX512)
  if (i == o.k) return;
  for (int j = 0; j < many; j += 2) {  // the last half run of two rows
    const __m256i* low = reinterpret_cast<const __m256i*>(codes[j] + i / 2);
    const __m256i* high = reinterpret_cast<const __m256i*>(codes[j + 1] + i / 2);
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)), _mm256_loadu_si256(high), 1);
    const Vec words = {_mm512_castsi512_ps(both)};
    prefetch_ahead(o, codes[j] + i / 2);
    prefetch_ahead(o, codes[j + 1] + i / 2);
    Vec part[Few];
    for (int f = 0; f < Few; f++) part[f] = Vec::zero();
    QT_UNROLLED for (int e = 0; e < 8; e++) {
      const Vec w = look_up(table, words, e);
      for (int f = 0; f < Few; f++) part[f] = fma(w, Vec::load(x + f * o.few_stride + e * Vec::width), part[f]);
    }
    const Vec factor = scales_of_halves(scale[j] + i / 64, scale[j + 1] + i / 64);
    for (int f = 0; f < Few; f++) {
      sum[f][j].v = _mm512_mask3_fmadd_ps(part[f].v, factor.v, sum[f][j].v, 0x00ff);
      sum[f][j + 1].v = _mm512_mask3_fmadd_ps(part[f].v, factor.v, sum[f][j + 1].v, 0xff00);
    }
  }
#endif
}

#endif

#if defined(QT_PAIRS)

template <int Few>
void accumulate_pairs(const Operand& o, int64_t few, const bfloat16* const (&row)[many], Vec (&sum)[Few][many]) {
  const Pair* x = o.few_row<Pair>(few);
  for (int64_t i = 0; i < o.k; i += Pairs::elements, x += Pairs::width) {
    const int64_t rest = o.k - i;
    Pairs w[many];
    for (int j = 0; j < many; j++) {
      prefetch_ahead(o, row[j] + i);
      w[j] = rest >= Pairs::elements ? Pairs::load(row[j] + i) : Pairs::load_partial(row[j] + i, static_cast<int>(rest));
    }
    for (int f = 0; f < Few; f++) {
      const Pairs v = Pairs::load(x + f * o.few_stride);
      for (int j = 0; j < many; j++) sum[f][j] = dot(v, w[j], sum[f][j]);
    }
  }
}

// Half word h of a register of codes holds those of elements 4 h to 4 h + 3, of which the one in its n-th four bits is n ^ 1.
// So look-up n of all half words meets x[n ^ 1], x[4 + (n ^ 1)], …
// `from` is padded with zeros to whole runs.
inline void order_for_codes(const float* from, int64_t k, Pair* to) {
  static const uint32_t order[Pairs::width] = {// of 32 elements: those of look-up 0, of look-up 1, …
                                               0x050001, 0x0d0009, 0x150011, 0x1d0019, 0x040000, 0x0c0008, 0x140010, 0x1c0018,
                                               0x070003, 0x0f000b, 0x170013, 0x1f001b, 0x060002, 0x0e000a, 0x160012, 0x1e001a};
  constexpr int part = Pairs::width / 4;
  for (int64_t i = 0; i < k; i += code_run, to += code_run / 2) {
    for (int q = 0; q < 4; q++) {
      const float* x = from + i + q * Pairs::elements;
      Pair ordered[Pairs::width];
      permute(round_pairs(Vec::load(x), Vec::load(x + Vec::width)), order).store(ordered);
      for (int n = 0; n < 4; n++) std::memcpy(to + n * Pairs::width + q * part, ordered + n * part, part * sizeof(Pair));
    }
  }
}

// Values of codes are rounded to bfloat16 before they are scaled: a look-up yields 32 of them. For 128 codes: a load, 3 shifts,
// 4 vpermw and 4 vdpbf16ps a row of the few; half of what floats take.
template <int Few>
void accumulate_pair_codes(const Operand& o, int64_t few, Rows rows, const float* scales, Vec (&sum)[Few][many]) {
  const PairTable table = pair_table(o.q.values);
  const Pair* x = o.few_row<Pair>(few);
  for (int64_t i = 0; i < o.k; i += code_run, x += code_run / 2) {
    const bool whole = o.k - i >= code_run;
    for (int j = 0; j < many; j++) {
      const float* codes = reinterpret_cast<const float*>(o.q.codes + (rows.at(j) * o.rows.outer_stride + i) / 2);
      const float* scale = scales + (rows.step(j) * o.rows.outer_stride + i) / 64;
      prefetch_ahead(o, codes);
      const Pairs halves = pairs_of_bits(whole ? Vec::load(codes) : Vec::load_partial(codes, 8));
      Vec part[Few];
      for (int f = 0; f < Few; f++) part[f] = Vec::zero();
      for (int n = 0; n < 4; n++) {
        const Pairs w = look_up(table, halves, n);
        for (int f = 0; f < Few; f++) part[f] = dot(w, Pairs::load(x + f * o.few_stride + n * Pairs::width), part[f]);
      }
      const Vec factor = whole ? scales_of_words(scale) : Vec::broadcast(*scale);
      for (int f = 0; f < Few; f++) sum[f][j] = fma(part[f], factor, sum[f][j]);
    }
  }
}

#endif

}  // namespace quantune::cpu::QT_CPU_VARIANT
