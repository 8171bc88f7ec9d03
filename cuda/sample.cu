// sample: one token a row, drawn with the row's own Philox number from what temperature, top-k, top-p and min-p leave.
#include "candidates.cuh"
#include "kernels.h"
#include "philox.cuh"

namespace quantune::cuda {
namespace {

constexpr int kMostThreads = 1024;

struct Warpers {
  float temperature;
  int64_t top_k;
  double top_p, min_p;
};

struct SampleShared {
  double* sums;  // one a thread, and their total
  int64_t* found;
  __host__ __device__ SampleShared(SharedCarver& carve, int threads) {
    sums = carve.array<double>(threads + 1);
    found = carve.array<int64_t>(1);
  }
};

// ---- without a filter ------------------------------------------------------------------------------------------------

// The first token at which the running sum passes the drawn share of the whole, in the order of the vocabulary: a warp sums a
// segment of the row, then the warp whose segment has the place looks for it. All threads get the token.
__device__ int64_t draw_from_all(const SampleShared& shared, const float* logits, int64_t n, float temperature, float highest,
                                 double uniform) {
  const int warps = static_cast<int>(blockDim.x) / kWarp, warp = warp_index(), lane = lane_index();
  const int64_t segment = ceil_div<int64_t>(ceil_div<int64_t>(n, warps), kWarp) * kWarp, first = warp * segment;
  const int64_t end = first + segment < n ? first + segment : n;
  const float inverse = 1.0f / temperature;
  auto weight = [&](int64_t i) { return i < end ? static_cast<double>(expf((logits[i] - highest) * inverse)) : 0.0; };
  double sum = 0;
  for (int64_t i = first + lane; i < end; i += kWarp) sum += weight(i);
  sum = warp_sum(sum);
  if (lane == 0) shared.sums[warp] = sum;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < warps; w++) total += shared.sums[w];
  double target = uniform * total;
  int last = 0, mine = 0;  // the last segment that has anything takes the crumb that rounding may leave
  for (int w = 0; w < warps; w++)
    if (shared.sums[w] > 0) last = w;
  while (mine < last && target >= shared.sums[mine]) target -= shared.sums[mine++];
  if (threadIdx.x == 0) *shared.found = 0;
  __syncthreads();
  if (warp == mine) {
    int64_t token = first;
    for (int64_t start = first; start < end; start += kWarp) {
      const double own = weight(start + lane);
      double through = own;
      for (int step = 1; step < kWarp; step *= 2) {
        const double other = __shfl_up_sync(kFullMask, through, step);
        if (lane >= step) through += other;
      }
      const unsigned possible = __ballot_sync(kFullMask, own > 0);
      const unsigned passed = __ballot_sync(kFullMask, own > 0 && target < through);
      if (possible)
        token = start + (passed ? __ffs(static_cast<int>(passed)) - 1 : kWarp - 1 - __clz(static_cast<int>(possible)));
      if (passed) break;
      target -= __shfl_sync(kFullMask, through, kWarp - 1);
    }
    if (lane == 0) *shared.found = token;
  }
  __syncthreads();
  return *shared.found;
}

// ---- with filters ----------------------------------------------------------------------------------------------------

// Which bins hold every candidate that can be left; *listed: how many are in them. `total`: of the weights of all candidates.
__device__ int last_bin(const CandidateShared& shared, const Bins& bins, const float* logits, int64_t n, const Warpers& warpers,
                        float highest, double* total, int64_t* listed) {
  clear_bins(shared);
  constexpr float kUnit = 4096.0f;  // a weight is counted relative to the best of its bin: 2^20 candidates fit 32 bits
  const float inverse = 1.0f / warpers.temperature, width = bins.scale > 0 ? 1.0f / bins.scale : 0.0f;
  const float top = highest / warpers.temperature;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float x = logits[i];
    if (!(x == x)) continue;
    const int bin = bins.of(x);
    atomicAdd(&shared.counts[bin], 1u);
    if (warpers.top_k > 0) continue;
    sum += static_cast<double>(expf(x / warpers.temperature - top));
    const float relative = expf((x - highest + static_cast<float>(bin) * width) * inverse);
    atomicAdd(&shared.weights[bin], static_cast<unsigned int>(fminf(relative, 1.0f) * kUnit));
  }
  *total = block_sum(sum);
  if (warpers.top_k > 0) {
    const double wanted = static_cast<double>(warpers.top_k);
    return find_bin(shared, wanted, listed, [&](int b) { return static_cast<double>(shared.counts[b]); });
  }
  // top-p: until the weights, which were rounded down, reach their share. min-p: until a bin's best is too light.
  const double wanted = warpers.top_p < 1 ? warpers.top_p * *total * (1 + 1e-4) : INFINITY;
  return find_bin(shared, wanted, listed, [&](int b) {
    const double best = exp(-static_cast<double>(static_cast<float>(b) * width) * inverse);
    if (best * (1 + 1e-4) < warpers.min_p) return static_cast<double>(INFINITY);
    return best * static_cast<double>(shared.weights[b]) / static_cast<double>(kUnit);
  });
}

// The smallest i of all threads.
__device__ int64_t block_first(int64_t i) { return -block_max(-i); }

// Each thread has a run of the list that weighs `own`: what the runs before it weigh, and all together.
__device__ double sum_before(const SampleShared& shared, double own, double* total) {
  __syncthreads();  // an earlier result has been read
  shared.sums[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int per_lane = static_cast<int>(blockDim.x) / kWarp, begin = lane_index() * per_lane;
    double sum = 0;
    for (int i = begin; i < begin + per_lane; i++) sum += shared.sums[i];
    double through = sum;
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(kFullMask, through, step);
      if (lane_index() >= step) through += other;
    }
    if (lane_index() == kWarp - 1) shared.sums[blockDim.x] = through;
    double before = through - sum;
    for (int i = begin; i < begin + per_lane; i++) {
      const double value = shared.sums[i];
      shared.sums[i] = before;
      before += value;
    }
  }
  __syncthreads();
  *total = shared.sums[blockDim.x];
  return shared.sums[threadIdx.x];
}

// The candidates that top-k, top-p and min-p (in this order, as transformers' warpers) leave of the sorted list, and the one
// that the drawn share falls on. Ties with the k-th best stay. Weights are e^(logit - highest) in float64.
__device__ int64_t draw_from_list(const SampleShared& shared, const uint64_t* list, int64_t listed, const Warpers& warpers,
                                  double total, double uniform) {
  auto logit = [&](int64_t i) { return candidate_score(list[i]) / warpers.temperature; };
  const double top = logit(0);
  auto weight = [&](int64_t i) { return exp(static_cast<double>(logit(i)) - top); };
  int64_t limit = listed;
  if (warpers.top_k > 0 && warpers.top_k < listed) {
    const float lowest = logit(warpers.top_k - 1);
    int64_t beyond = listed;
    for (int64_t i = warpers.top_k + threadIdx.x; i < listed; i += blockDim.x)
      if (logit(i) != lowest && i < beyond) beyond = i;
    limit = block_first(beyond);
  }
  const int64_t run = ceil_div<int64_t>(limit, static_cast<int64_t>(blockDim.x)), first = threadIdx.x * run;
  const int64_t end = first + run < limit ? first + run : limit;
  double own = 0, of_list;
  for (int64_t i = first; i < end; i++) own += weight(i);
  double before = sum_before(shared, own, &of_list);
  if (warpers.top_k > 0) total = of_list;
  int64_t left = limit;
  for (int64_t i = first; i < end; i++) {
    const double w = weight(i);
    if (i > 0 && i < left && ((warpers.top_p < 1 && before >= warpers.top_p * total) || w < warpers.min_p)) left = i;
    before += w;
  }
  left = block_first(left);
  own = 0;
  for (int64_t i = first; i < end && i < left; i++) own += weight(i);
  before = sum_before(shared, own, &total);
  const double target = uniform * total;
  int64_t chosen = left;
  for (int64_t i = first; i < end && i < left && chosen == left; i++) {
    before += weight(i);
    if (target < before) chosen = i;
  }
  chosen = block_first(chosen);
  return candidate_index(list[chosen < left ? chosen : 0]);
}

__device__ double drawn_share(const uint32_t* rng) {
  const PhiloxNumbers numbers({rng[0], 0}, rng[1], 0x73616d70u, 0, 0);  // "samp": apart from all other draws
  return (static_cast<double>(numbers.word[0] >> 5) * 67108864.0 + (numbers.word[1] >> 6)) / 9007199254740992.0;
}

// One block a row: three or four passes over it, the first from memory, the others from the second-level cache, and a sort of
// the candidates that can be left (tens to a few thousands). Bound by what one multiprocessor reads of that cache.
__global__ void __launch_bounds__(kMostThreads)
    sample_kernel(int32_t* tokens, float* log_probs, const float* logits, const uint32_t* rng, uint64_t* spill, int64_t padded,
                  int64_t width, Warpers warpers, bool filtered) {
  SharedCarver carve = dynamic_shared();
  const SampleShared shared(carve, static_cast<int>(blockDim.x));
  const int64_t row = blockIdx.x;
  const float* x = logits + row * width;
  float high = -INFINITY, low = INFINITY;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    if (x[i] > high) high = x[i];
    if (x[i] < low && x[i] > -INFINITY) low = x[i];
  }
  const Bins bins(high, low);
  const float highest = bins.highest;
  const double uniform = drawn_share(rng + 2 * row);
  int64_t token;
  if (filtered) {
    const CandidateShared candidates(carve);
    double total;
    int64_t listed;
    const int last = last_bin(candidates, bins, x, width, warpers, highest, &total, &listed);
    const uint64_t* list =
        list_candidates(candidates, bins, last, listed, width, spill + row * padded, [&](int64_t i) { return x[i]; });
    token = listed > 0 ? draw_from_list(shared, list, listed, warpers, total, uniform) : 0;
  } else {
    token = draw_from_all(shared, x, width, warpers.temperature, highest, uniform);
  }
  if (threadIdx.x == 0) tokens[row] = static_cast<int32_t>(token);
  if (!log_probs) return;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += highest > -INFINITY ? expf(x[i] - highest) : 0.0f;
  sum = block_sum(sum);
  if (threadIdx.x == 0) log_probs[row] = x[token] - (highest > -INFINITY ? highest + logf(sum) : highest);
}

struct AllShared {
  __host__ __device__ AllShared(SharedCarver& carve, int threads) {
    SampleShared sample(carve, threads);
    CandidateShared candidates(carve);
  }
};

}  // namespace

qt_status sample(qt_stream* stream, const qt_sample_args* args) {
  const int64_t width = last_of(args->logits), rows = rows_of(args->logits);
  const Warpers warpers{static_cast<float>(args->temperature), args->top_k < width ? args->top_k : 0, args->top_p, args->min_p};
  if (!(args->temperature > 0)) {
    return stream->fail(QT_INVALID_ARGUMENT, "temperature is %g, expected more than 0", args->temperature);
  }
  if (args->top_k < 0 || !(args->top_p > 0 && args->top_p <= 1) || !(args->min_p >= 0 && args->min_p <= 1)) {
    return stream->fail(QT_INVALID_ARGUMENT, "expected top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1; got %lld, %g, %g",
                        static_cast<long long>(args->top_k), args->top_p, args->min_p);
  }
  const bool filtered = warpers.top_k > 0 || args->top_p < 1 || args->min_p > 0;
  const int64_t padded = filtered && width > kListed ? power_of_two_from(width) : 0;
  uint64_t* spill = stream->scratch_of<uint64_t>(rows * padded + 1);
  if (!spill) return stream->out_of_scratch();
  const int64_t wanted = ceil_div<int64_t>(ceil_div<int64_t>(width, 8), kWarp) * kWarp;
  const int threads = static_cast<int>(wanted < kMostThreads ? wanted : kMostThreads);
  const size_t bytes = filtered ? shared_bytes<AllShared>(threads) : shared_bytes<SampleShared>(threads);
  return launch(sample_kernel, rows, threads, bytes, stream, data_of<int32_t>(args->tokens), data_of<float>(args->log_probs),
                data_of<const float>(args->logits), data_of<const uint32_t>(args->rng), spill, padded, width, warpers,
                filtered);
}

}  // namespace quantune::cuda
