// Pairs: a register of 32 bfloat16, taken as sixteen pairs: what vdpbf16ps multiplies, adding both products of a pair to one
// float. Only the variant avx512bf16 has it (QT_PAIRS).
#pragma once
#include "vec.h"

#if defined(QT_CPU_AVX512BF16)
#define QT_PAIRS

namespace quantune::cpu::QT_CPU_VARIANT {

// Two bfloat16 that follow one another along k, the first in the lower half: the elements of a panel of bfloat16.
struct Pair {
  uint32_t bits;
};

inline Pair pair_of(float first, float second) {
  return {from_float<bfloat16>(first).bits | static_cast<uint32_t>(from_float<bfloat16>(second).bits) << 16};
}

struct Pairs {
  static constexpr int width = 16, elements = 32;
  __m512i v;

  static Pairs broadcast(Pair x) { return {_mm512_set1_epi32(static_cast<int>(x.bits))}; }
  static Pairs load(const Pair* p) { return {_mm512_loadu_si512(p)}; }
  static Pairs load(const bfloat16* p) { return {_mm512_loadu_si512(p)}; }
  // The first n < 32 elements; the rest are 0.
  static Pairs load_partial(const bfloat16* p, int n) { return {_mm512_maskz_loadu_epi16((1u << n) - 1u, p)}; }
  void store(Pair* p) const { _mm512_storeu_si512(p, v); }
  Vec bits() const { return {_mm512_castsi512_ps(v)}; }
};

inline Pairs pairs_of_bits(Vec x) { return {_mm512_castps_si512(x.v)}; }

// __m512bh is a vector type, a class or a union, as the compiler likes.
template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "registers of one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// c + a b, pair by pair: a rounding after each of the two products; denormals count as 0.
inline Vec dot(Pairs a, Pairs b, Vec c) { return {_mm512_dpbf16_ps(c.v, same_bits<__m512bh>(a.v), same_bits<__m512bh>(b.v))}; }

// Both rounded to bfloat16: `low` becomes elements 0 to 15, `high` 16 to 31.
inline Pairs round_pairs(Vec low, Vec high) { return {same_bits<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v))}; }

// Element i becomes x[order[i]], orders in pairs as elements are.
inline Pairs permute(Pairs x, const uint32_t (&order)[Pairs::width]) {
  return {_mm512_permutexvar_epi16(_mm512_loadu_si512(order), x.v)};
}

// Pair l becomes (first lane l, second lane l), both rounded.
inline Pairs interleave(Vec first, Vec second) {
  alignas(64) static const uint32_t order[Pairs::width] = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005,
                                                           0x160006, 0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b,
                                                           0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
  return permute(round_pairs(first, second), order);
}

// The sixteen 4-bit values rounded and doubled, so that a look-up need not mask the fifth bit of its index.
using PairTable = Pairs;
inline PairTable pair_table(const float* values) {
  const Vec rounded = Vec::load(values);
  return round_pairs(rounded, rounded);
}
// Values of four bits of each half word: the lowest after a shift by 4 * nibble.
inline Pairs look_up(PairTable table, Pairs codes, int nibble) {
  return {_mm512_permutexvar_epi16(_mm512_srli_epi16(codes.v, static_cast<unsigned>(4 * nibble)), table.v)};
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
#endif
