// beam_topk: the best continuations of each prompt's beams.
#include "candidates.cuh"
#include "kernels.h"

namespace quantune::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlice = kListed;  // of a row, so that all of it fits where it is sorted

// The k best of n candidates, sorted; the same for both stages. Returns how many were found (NaN is none).
template <class Score>
__device__ int64_t best_of(const CandidateShared& shared, int64_t n, int64_t k, uint64_t* spill, const Score& score,
                           const uint64_t** list) {
  float high = -INFINITY, low = INFINITY;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float s = score(i);
    if (s > high) high = s;
    if (s < low && s > -INFINITY) low = s;
  }
  const Bins bins(high, low);
  clear_bins(shared);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float s = score(i);
    if (s == s) atomicAdd(&shared.counts[bins.of(s)], 1u);
  }
  int64_t listed;
  const int last =
      find_bin(shared, static_cast<double>(k), &listed, [&](int b) { return static_cast<double>(shared.counts[b]); });
  *list = list_candidates(shared, bins, last, listed, n, spill, score);
  return listed < k ? listed : k;
}

// best[row, slice, 0 .. k): the keys of the k best of a slice of a row, 0 where there are fewer; the index counts from the
// prompt's first beam. Bound by memory: the log-probabilities once (twice more from the nearest cache).
__global__ void __launch_bounds__(kThreads) beam_slices_kernel(uint64_t* best, const float* log_probs, const float* beam_scores,
                                                               int64_t beams, int64_t width, int64_t k) {
  SharedCarver carve = dynamic_shared();
  const CandidateShared shared(carve);
  const int64_t row = blockIdx.y, first = blockIdx.x * kSlice, n = width - first < kSlice ? width - first : kSlice;
  const float* x = log_probs + row * width + first;
  const float base = beam_scores[row];
  const uint64_t* list;
  const int64_t found = best_of(
      shared, n, k, nullptr, [&](int64_t i) { return x[i] + base; }, &list);
  uint64_t* out = best + (row * gridDim.x + blockIdx.x) * k;
  const int64_t offset = row % beams * width + first;
  for (int64_t i = threadIdx.x; i < k; i += kThreads)
    out[i] = i < found ? candidate_key(candidate_score(list[i]), candidate_index(list[i]) + offset) : 0;
}

// The k best of what a prompt's slices left.
__global__ void __launch_bounds__(kThreads)
    beam_prompts_kernel(float* scores, int32_t* beams, int32_t* tokens, const uint64_t* best, uint64_t* spill,
                        int64_t candidates, int64_t padded, int64_t width, int64_t k) {
  SharedCarver carve = dynamic_shared();
  const CandidateShared shared(carve);
  const uint64_t* keys = best + blockIdx.x * candidates;
  auto score = [&](int64_t i) { return keys[i] ? candidate_score(keys[i]) : NAN; };
  const uint64_t* list;
  const int64_t found = best_of(shared, candidates, k, spill + blockIdx.x * padded, score, &list);
  for (int64_t i = threadIdx.x; i < k; i += kThreads) {
    // Candidates of one prompt stand in the order of their indices where scores are equal: beam by beam, slice by slice.
    const uint64_t key = i < found ? keys[candidate_index(list[i])] : candidate_key(-INFINITY, 0);
    const int64_t index = candidate_index(key), out = blockIdx.x * k + i;
    scores[out] = candidate_score(key);
    beams[out] = static_cast<int32_t>(index / width);
    tokens[out] = static_cast<int32_t>(index % width);
  }
}

}  // namespace

qt_status beam_topk(qt_stream* stream, const qt_beam_topk_args* args) {
  const int64_t width = last_of(args->log_probs), rows = rows_of(args->log_probs);
  const int64_t prompts = rows_of(args->scores), k = last_of(args->scores), beams = prompts ? rows / prompts : 0;
  if (k > beams * width) {
    return stream->fail(QT_INVALID_ARGUMENT, "the %lld best of %lld candidates were asked for", static_cast<long long>(k),
                        static_cast<long long>(beams * width));
  }
  // Keys carry beam * width + token, which must fit; a grid has 65535 rows.
  if (beams * width > INT32_MAX) return stream->fail(QT_INVALID_ARGUMENT, "too many beams for the vocabulary");
  if (rows > 65535) return stream->fail(QT_UNSUPPORTED, "more than 65535 beams in one call");
  if (k == 0 || prompts == 0) return QT_OK;
  const int64_t slices = ceil_div(width, kSlice), of_slice = k < kSlice ? k : kSlice, candidates = beams * slices * of_slice;
  const int64_t padded = power_of_two_from(candidates);
  uint64_t* best = stream->scratch_of<uint64_t>(rows * slices * of_slice);
  uint64_t* spill = stream->scratch_of<uint64_t>(padded > kListed ? prompts * padded : 1);
  if (!best || !spill) return stream->out_of_scratch();
  const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(rows));
  qt_status status =
      launch(beam_slices_kernel, grid, kThreads, shared_bytes<CandidateShared>(), stream, best,
             data_of<const float>(args->log_probs), data_of<const float>(args->beam_scores), beams, width, of_slice);
  if (status != QT_OK) return status;
  return launch(beam_prompts_kernel, prompts, kThreads, shared_bytes<CandidateShared>(), stream, data_of<float>(args->scores),
                data_of<int32_t>(args->beams), data_of<int32_t>(args->tokens), best, spill, candidates, padded, width, k);
}

}  // namespace quantune::cuda
