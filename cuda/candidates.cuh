// Candidates in their order (the higher score first, then the lower index), as 64-bit keys: the best of a long row are found by
// a histogram over its range, of which the best bins are listed and sorted. What is sorted is small unless scores are nearly
// equal.
#pragma once
#include "device/launch.h"
#include "device/types.h"
#include "device/warp.h"

namespace quantune::cuda {

// Keys compare as candidates do, larger is better; 0 is below every candidate. NaN is never a candidate.
__device__ inline uint64_t candidate_key(float score, int64_t index) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0: they are equal
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(order) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ inline float candidate_score(uint64_t key) {
  const uint32_t order = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}
__device__ inline int64_t candidate_index(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

constexpr int kBins = 1024;
constexpr int kListed = 4096;  // keys that shared memory holds
constexpr float kMostRange = 64.0f;

struct CandidateShared {
  unsigned int *counts, *weights, *listed;
  uint64_t* list;
  __host__ __device__ explicit CandidateShared(SharedCarver& carve) {
    counts = carve.array<unsigned int>(kBins);
    weights = carve.array<unsigned int>(kBins);
    listed = carve.array<unsigned int>(2);
    list = carve.array<uint64_t>(kListed);
  }
};

// Bins of equal width from the highest score down; the last one takes all that is below kMostRange.
struct Bins {
  float highest, scale;

  // Called by all threads with the highest and the lowest finite score of what they have seen.
  __device__ Bins(float high, float low) {
    highest = block_max(high);
    const float lowest = -block_max(-low), range = highest - lowest < kMostRange ? highest - lowest : kMostRange;
    scale = range > 1e-20f ? (kBins - 1) / range : 0.0f;
  }
  __device__ int of(float score) const {
    const float at = (highest - score) * scale;
    return at < kBins - 1 ? static_cast<int>(at) : kBins - 1;  // and not a number, where infinities meet
  }
};

// Sorts n keys (a power of two), the largest first. Called by all threads of the block; they must be in place.
__device__ inline void sort_keys(uint64_t* keys, int64_t n) {
  for (int64_t size = 2; size <= n; size *= 2) {
    for (int64_t step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int64_t i = threadIdx.x; i < n / 2; i += blockDim.x) {
        const int64_t at = i / step * 2 * step + i % step, other = at + step;
        const uint64_t a = keys[at], b = keys[other];
        const bool descending = (at & size) == 0;
        if (descending ? a < b : a > b) {
          keys[at] = b;
          keys[other] = a;
        }
      }
    }
  }
  __syncthreads();
}

__host__ __device__ inline int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// Lists, sorted, the candidates of bins 0 to `last`: in shared memory where they fit, else in `spill`, which holds a power of
// two of at least n keys. Returns where; *count is how many. score(i) of n candidates; `listed` is what the histogram counted.
template <class Score>
__device__ const uint64_t* list_candidates(const CandidateShared& shared, const Bins& bins, int last, int64_t listed, int64_t n,
                                           uint64_t* spill, const Score& score) {
  uint64_t* list = listed <= kListed ? shared.list : spill;
  const int64_t padded = power_of_two_from(listed);
  if (threadIdx.x == 0) shared.listed[0] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float s = score(i);
    if (s == s && bins.of(s) <= last) list[atomicAdd(&shared.listed[0], 1u)] = candidate_key(s, i);
  }
  for (int64_t i = listed + threadIdx.x; i < padded; i += blockDim.x) list[i] = 0;
  sort_keys(list, padded);
  return list;
}

__device__ inline void clear_bins(const CandidateShared& shared) {
  for (int b = threadIdx.x; b < kBins; b += blockDim.x) shared.counts[b] = shared.weights[b] = 0;
  __syncthreads();
}

// The first bin at which the running sum of value(bin) reaches `wanted`, or the last bin; *listed: the counts up to it.
template <class Value>
__device__ int find_bin(const CandidateShared& shared, double wanted, int64_t* listed, const Value& value) {
  __syncthreads();  // the histogram is complete
  if (threadIdx.x < kWarp) {
    constexpr int kPerLane = kBins / kWarp;
    const int lane = lane_index();
    double sum = 0;
    unsigned int count = 0;
    for (int b = lane * kPerLane; b < (lane + 1) * kPerLane; b++) {
      sum += value(b);
      count += shared.counts[b];
    }
    double through = sum;
    unsigned int count_through = count;
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(kFullMask, through, step);
      const unsigned int other_count = __shfl_up_sync(kFullMask, count_through, step);
      if (lane >= step) {
        through += other;
        count_through += other_count;
      }
    }
    // The sums before this lane, not through - sum: a value may be infinite.
    double before = __shfl_up_sync(kFullMask, through, 1);
    unsigned int counted = __shfl_up_sync(kFullMask, count_through, 1);
    if (lane == 0) {
      before = 0;
      counted = 0;
    }
    const unsigned int reached = __ballot_sync(kFullMask, through >= wanted);
    if (lane == (reached ? __ffs(static_cast<int>(reached)) - 1 : kWarp - 1)) {
      int b = lane * kPerLane;
      for (; b < (lane + 1) * kPerLane; b++) {
        before += value(b);
        counted += shared.counts[b];
        if (before >= wanted) break;
      }
      shared.listed[0] = static_cast<unsigned int>(b < (lane + 1) * kPerLane ? b : b - 1);
      shared.listed[1] = counted;
    }
  }
  __syncthreads();
  const int bin = static_cast<int>(shared.listed[0]);
  *listed = shared.listed[1];
  __syncthreads();
  return bin;
}

}  // namespace quantune::cuda
