// Philox 4x32-10 (Salmon et al. 2011), and which number belongs to which element: as csrc/cpu/random.cpp has it, so that both
// devices draw the same. Elements come in groups of 64, served by 16 counters: element i takes word (i / 16) % 4 of the counter
// 16 (i / 64) + i % 16.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace quantune::cuda {

struct PhiloxKey {
  uint32_t low, high;
};

struct PhiloxNumbers {
  uint32_t word[4];

  __device__ PhiloxNumbers(PhiloxKey key, uint32_t a, uint32_t b, uint32_t c, uint32_t d) : word{a, b, c, d} {
#pragma unroll
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

// A family of counters: (counter, a, b, c) under a key. The highest bit of c tells initialisation from dropout.
struct PhiloxFamily {
  PhiloxKey key;
  uint32_t a, b, c;
};

// [0, 1) from the highest 24 bits.
__device__ inline float unit_interval(uint32_t word) { return static_cast<float>(word >> 8) * 5.9604644775390625e-8f; }

}  // namespace quantune::cuda
