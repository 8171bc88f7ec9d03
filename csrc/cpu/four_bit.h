// Reading 4-bit weights: the code tables of NF4 and FP4 (QLoRA, Dettmers et al. 2023, as in bitsandbytes) and a decoder that
// yields any run of the flattened weight, whatever block or byte it starts in.
#pragma once
#include "kernels.h"

namespace quantune::cpu::QT_CPU_VARIANT {

alignas(64) constexpr float nf4_values[16] = {-1.0f,
                                              -0.6961928009986877f,
                                              -0.5250730514526367f,
                                              -0.39491748809814453f,
                                              -0.28444138169288635f,
                                              -0.18477343022823334f,
                                              -0.09105003625154495f,
                                              0.0f,
                                              0.07958029955625534f,
                                              0.16093020141124725f,
                                              0.24611230194568634f,
                                              0.33791524171829224f,
                                              0.44070982933044434f,
                                              0.5626170039176941f,
                                              0.7229568362236023f,
                                              1.0f};
alignas(64) constexpr float fp4_values[16] = {
    0.0f, 0.0052083334885537624f,  0.6666666865348816f,  1.0f,  0.3333333432674408f,  0.5f,  0.1666666716337204f,  0.25f,
    0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f};

inline bool is_four_bit(int dtype) { return dtype == QT_NF4 || dtype == QT_FP4; }

// bitsandbytes multiplies, rounds, then adds; a fused multiply-add would differ in the last bit.
inline float multiply_then_add(float a, float b, float c) {
  float product = a * b;
#if defined(__GNUC__) && defined(__x86_64__)
  asm("" : "+x"(product));
#else
  volatile float rounded = product;
  product = rounded;
#endif
  return product + c;
}

// The eight codes of each 32-bit word: element e lies in the four bits from code_shift(e) on.
constexpr int code_shift(int e) { return e / 2 * 8 + (e % 2 == 0 ? 4 : 0); }

#if defined(QT_CPU_AVX512)
#define QT_CODE_WORDS
using CodeTable = __m512;
inline CodeTable code_table(const float* values) { return _mm512_load_ps(values); }
// Values of the lowest four bits of each word.
inline Vec look_up(CodeTable table, __m512i words) { return {_mm512_permutexvar_ps(words, table)}; }
// Values of element e of each word.
inline Vec look_up(CodeTable table, Vec words, int e) {
  return look_up(table, _mm512_srli_epi32(_mm512_castps_si512(words.v), static_cast<unsigned>(code_shift(e))));
}
#elif defined(QT_CPU_AVX2)
#define QT_CODE_WORDS
struct CodeTable {
  __m256 low, high;
};
inline CodeTable code_table(const float* values) { return {_mm256_load_ps(values), _mm256_load_ps(values + 8)}; }
// The lower half of the table or the upper: a code's highest bit says which.
inline Vec look_up(CodeTable table, Vec words, int e) {
  const __m256i v = _mm256_castps_si256(words.v), code = _mm256_srli_epi32(v, code_shift(e));
  const __m256 low = _mm256_permutevar8x32_ps(table.low, code), high = _mm256_permutevar8x32_ps(table.high, code);
  return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(v, 28 - code_shift(e))))};
}
inline Vec look_up(CodeTable table, __m256i words) { return look_up(table, {_mm256_castsi256_ps(words)}, 1); }

// For whole registers of codes: byte b of all 16 values is a table for byte shuffles, which look up 32 codes at once and, from
// Ice Lake and Zen 2 on, two in a cycle. Interleaved, the four bytes are values again: 4.4 instructions for eight values,
// not 7.
struct CodeBytes {
  alignas(16) uint8_t of[4][16];  // byte b of value i

  explicit CodeBytes(const float* values) {
    for (int i = 0; i < 16; i++) {
      uint32_t bits;
      std::memcpy(&bits, values + i, 4);
      for (int b = 0; b < 4; b++) of[b][i] = static_cast<uint8_t>(bits >> 8 * b);
    }
  }
};
struct BytePlanes {
  __m256i byte[4];

  explicit BytePlanes(const CodeBytes& bytes) {
    for (int b = 0; b < 4; b++)
      byte[b] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes.of[b])));
  }
};
inline const CodeBytes& code_bytes(const float* values) {
  static const CodeBytes nf4(nf4_values), fp4(fp4_values);
  return values == nf4_values ? nf4 : fp4;
}
// Which of the 64 elements of a register of codes lane `l` of vector `v` of eight holds.
constexpr int element_of_plane(int v, int l) { return 2 * (v % 4 * 4 + l % 4 + l / 4 * 16) + v / 4; }
// use(v, values) for the eight vectors.
template <class Use>
inline void look_up_all(const BytePlanes& planes, Vec codes, Use use) {
  const __m256i packed = _mm256_castps_si256(codes.v), low = _mm256_set1_epi8(15);
  const __m256i index[2] = {_mm256_and_si256(_mm256_srli_epi16(packed, 4), low), _mm256_and_si256(packed, low)};
  for (int h = 0; h < 2; h++) {
    __m256i byte[4];
    for (int b = 0; b < 4; b++) byte[b] = _mm256_shuffle_epi8(planes.byte[b], index[h]);
    for (int part = 0; part < 2; part++) {  // of each 16 bytes the lower eight, then the upper
      const __m256i first = part == 0 ? _mm256_unpacklo_epi8(byte[0], byte[1]) : _mm256_unpackhi_epi8(byte[0], byte[1]);
      const __m256i last = part == 0 ? _mm256_unpacklo_epi8(byte[2], byte[3]) : _mm256_unpackhi_epi8(byte[2], byte[3]);
      use(h * 4 + part * 2, Vec{_mm256_castsi256_ps(_mm256_unpacklo_epi16(first, last))});
      use(h * 4 + part * 2 + 1, Vec{_mm256_castsi256_ps(_mm256_unpackhi_epi16(first, last))});
    }
  }
}
#endif

#if defined(QT_CODE_WORDS)
inline Vec multiply_then_add(Vec a, Vec b, Vec c) {
  Vec product = a * b;
#if defined(__GNUC__)
  asm("" : "+v"(product.v));
#endif
  return product + c;
}
#endif

struct FourBit {
  const uint8_t* codes;
  const uint8_t* absmax;
  const float* nested_absmax;  // null without double quantization
  const float* nested_code;
  float offset;
  int block_shift;
  const float* values;

  FourBit() = default;
  FourBit(const void* data, const qt_quant* q, int dtype) {
    const uint8_t* base = static_cast<const uint8_t*>(data);
    codes = base + q->codes;
    absmax = base + q->absmax;
    nested_absmax = q->double_quant ? reinterpret_cast<const float*>(base + q->nested_absmax) : nullptr;
    nested_code = q->double_quant ? reinterpret_cast<const float*>(base + q->nested_code) : nullptr;
    offset = q->double_quant ? *reinterpret_cast<const float*>(base + q->offset) : 0.0f;
    block_shift = 0;
    while ((int64_t{1} << block_shift) < q->block_size) block_shift++;
    values = dtype == QT_NF4 ? nf4_values : fp4_values;
  }

  float scale(int64_t block) const {
    if (!nested_absmax) return reinterpret_cast<const float*>(absmax)[block];
    return multiply_then_add(nested_code[absmax[block]], nested_absmax[block >> 8], offset);
  }
#if defined(QT_CODE_WORDS)
  // out[i] = the scale of the elements from start + 64 i on, for i < count; 64 divides start. The same bits as scale().
  void scales(int64_t start, int64_t count, float* out) const {
    const int shift = block_shift - 6;
    const int64_t first = start / 64;
    if (!nested_absmax) {
      for (int64_t i = 0; i < count; i++) out[i] = reinterpret_cast<const float*>(absmax)[(first + i) >> shift];
      return;
    }
    for (int64_t i = 0; i < count;) {  // runs of blocks that share nested_absmax
      const int64_t group = (first + i) >> (shift + 8), end = ((group + 1) << (shift + 8)) - first;
      const int64_t stop = end < count ? end : count;
      const Vec factor = Vec::broadcast(nested_absmax[group]), bias = Vec::broadcast(offset);
      for (; shift == 0 && i + Vec::width <= stop; i += Vec::width)
        multiply_then_add(looked_up(absmax + first + i), factor, bias).store(out + i);
      for (; i < stop; i++) out[i] = multiply_then_add(nested_code[absmax[(first + i) >> shift]], nested_absmax[group], offset);
    }
  }
  Vec looked_up(const uint8_t* scale_codes) const {
#if defined(QT_CPU_AVX512)
    const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scale_codes)));
    return {_mm512_i32gather_ps(index, nested_code, 4)};
#else
    const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scale_codes)));
    return {_mm256_i32gather_ps(nested_code, index, 4)};
#endif
  }
#endif
  float value(int64_t i) const { return values[(codes[i >> 1] >> ((~i & 1) * 4)) & 15] * scale(i >> block_shift); }

  // Sixteen (AVX-512) or eight values from an even position whose vector lies within one block, not yet scaled.
  Vec vec(int64_t i) const {
#if defined(QT_CPU_AVX512)
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + (i >> 1)));
    const __m128i low = _mm_set1_epi8(15);
    const __m128i nibbles = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), low), _mm_and_si128(packed, low));
    return look_up(code_table(values), _mm512_cvtepu8_epi32(nibbles));
#elif defined(QT_CPU_AVX2)
    int32_t bytes;
    std::memcpy(&bytes, codes + (i >> 1), 4);
    const __m128i packed = _mm_cvtsi32_si128(bytes), low = _mm_set1_epi8(15);
    const __m128i nibbles = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), low), _mm_and_si128(packed, low));
    return look_up(code_table(values), _mm256_cvtepu8_epi32(nibbles));
#else
    Vec r;
    for (int j = 0; j < Vec::width; j++) r.v[j] = values[(codes[(i + j) >> 1] >> ((~j & 1) * 4)) & 15];
    return r;
#endif
  }

  // out[0, n) = the n values from position i on.
  void decode(int64_t i, int64_t n, float* out) const {
    const int64_t end = i + n;
    while (i < end) {
      const int64_t block = i >> block_shift;
      int64_t stop = (block + 1) << block_shift;
      if (stop > end) stop = end;
      const float s = scale(block);
      if ((i & 1) && i < stop) *out++ = values[codes[i >> 1] & 15] * s, i++;
      for (; i + Vec::width <= stop; i += Vec::width, out += Vec::width) (vec(i) * Vec::broadcast(s)).store(out);
      for (; i < stop; i++) *out++ = values[(codes[i >> 1] >> ((~i & 1) * 4)) & 15] * s;
    }
  }
};

}  // namespace quantune::cpu::QT_CPU_VARIANT
