// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random numbers as a function of a key and
// a counter, so that an element's number depends on nothing but its place.
#pragma once
#include "simd/vec.h"

namespace quantune::cpu::QT_CPU_VARIANT {

struct PhiloxKey {
  uint32_t low, high;
};

// The four numbers of each counter (first + lane, b, c, d).
struct PhiloxBlock {
  Words word[4];

  PhiloxBlock(PhiloxKey key, uint32_t first, uint32_t b, uint32_t c, uint32_t d)
      : word{Words::count_from(first), Words::broadcast(b), Words::broadcast(c), Words::broadcast(d)} {
    const Words first_factor = Words::broadcast(0xD2511F53u), second_factor = Words::broadcast(0xCD9E8D57u);
    for (int round = 0; round < 10; round++) {
      Words p_low, p_high, q_low, q_high;
      multiply_wide(word[0], first_factor, &p_low, &p_high);
      multiply_wide(word[2], second_factor, &q_low, &q_high);
      word[0] = q_high ^ word[1] ^ Words::broadcast(key.low);
      word[2] = p_high ^ word[3] ^ Words::broadcast(key.high);
      word[1] = q_low;
      word[3] = p_low;
      key.low += 0x9E3779B9u;
      key.high += 0xBB67AE85u;
    }
  }
};

// The same for one counter.
struct PhiloxNumbers {
  uint32_t word[4];

  PhiloxNumbers(PhiloxKey key, uint32_t a, uint32_t b, uint32_t c, uint32_t d) : word{a, b, c, d} {
    for (int round = 0; round < 10; round++) {
      const uint64_t p = static_cast<uint64_t>(word[0]) * 0xD2511F53u, q = static_cast<uint64_t>(word[2]) * 0xCD9E8D57u;
      word[0] = static_cast<uint32_t>(q >> 32) ^ word[1] ^ key.low;
      word[2] = static_cast<uint32_t>(p >> 32) ^ word[3] ^ key.high;
      word[1] = static_cast<uint32_t>(q);
      word[3] = static_cast<uint32_t>(p);
      key.low += 0x9E3779B9u;
      key.high += 0xBB67AE85u;
    }
  }
};

}  // namespace quantune::cpu::QT_CPU_VARIANT
