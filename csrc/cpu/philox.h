// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random numbers as a function of a key and
// a counter, so that an element's number depends on nothing but its place.
#pragma once
#include <cstdint>

namespace quantune::cpu::QT_CPU_VARIANT {

struct PhiloxKey {
  uint32_t low, high;
};

// Numbers for `lanes` counters (first + lane, b, c, d), four each, side by side so that the compiler vectorizes the rounds.
template <int lanes>
struct PhiloxBlock {
  uint32_t word[4][lanes];

  PhiloxBlock(PhiloxKey key, uint32_t first, uint32_t b, uint32_t c, uint32_t d) {
    for (int i = 0; i < lanes; i++) {
      word[0][i] = first + static_cast<uint32_t>(i);
      word[1][i] = b;
      word[2][i] = c;
      word[3][i] = d;
    }
    for (int round = 0; round < 10; round++) {
      for (int i = 0; i < lanes; i++) {
        uint64_t p = static_cast<uint64_t>(word[0][i]) * 0xD2511F53u, q = static_cast<uint64_t>(word[2][i]) * 0xCD9E8D57u;
        uint32_t x = static_cast<uint32_t>(q >> 32) ^ word[1][i] ^ key.low;
        uint32_t z = static_cast<uint32_t>(p >> 32) ^ word[3][i] ^ key.high;
        word[1][i] = static_cast<uint32_t>(q);
        word[3][i] = static_cast<uint32_t>(p);
        word[0][i] = x;
        word[2][i] = z;
      }
      key.low += 0x9E3779B9u;
      key.high += 0xBB67AE85u;
    }
  }
};

// [0, 1) with 24 bits.
inline float unit_interval(uint32_t bits) { return static_cast<float>(bits >> 8) * 5.9604644775390625e-8f; }

}  // namespace quantune::cpu::QT_CPU_VARIANT
