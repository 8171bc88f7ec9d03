// attention_decode with tensor cores, for bfloat16 queries and caches.
#pragma once
#include "attention_decode.cuh"
#include "attention_mma.cuh"
#include "device/launch.h"

namespace quantune::cuda::decode {

constexpr int kProbabilityPitch = kRun + 8;  // an odd number of 16-byte pieces

template <int D, int strips>
struct MmaTiles {
  bf16 *q, *k, *v, *p;
  float *highest, *total;  // [warps, rows]
  int32_t* rows;           // of the cache
  uint64_t* agreeing;      // [warps]
  __host__ __device__ explicit MmaTiles(SharedCarver& carve) {
    q = carve.array<bf16>(16 * strips * mma::kPitch<D>, 128);
    k = carve.array<bf16>(kRun * mma::kPitch<D>, 128);
    v = carve.array<bf16>(kRun * mma::kPitch<D>, 128);
    p = carve.array<bf16>(16 * strips * kProbabilityPitch, 128);
    highest = carve.array<float>(kThreads / kWarp * 16 * strips);
    total = carve.array<float>(kThreads / kWarp * 16 * strips);
    rows = carve.array<int32_t>(kRun);
    agreeing = carve.array<uint64_t>(kThreads / kWarp);
  }
};

// Queues the copies of a run's rows; a token without one (-1) becomes 0.
template <int D>
__device__ void copy_rows(bf16* to, const bf16* from, const int32_t* rows, int kv_heads, int size) {
  constexpr int kPieces = D / 8;
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x); at < kRun * kPieces; at += kThreads) {
    const int row = at / kPieces, column = at % kPieces * 8;
    const bool valid = rows[row] >= 0 && column < size;
    copy_async_16(to + row * mma::kPitch<D> + column,
                  valid ? from + static_cast<int64_t>(rows[row]) * kv_heads * size + column : from, valid);
  }
}

// How many sequences from `first` on, at most `most` <= 64, have their run in the same places. Every thread of the block calls
// it; the tables of all candidates are read side by side, bit n of a thread's word says what it knows of sequence first + n.
template <class Agrees>
__device__ int agreeing(const Agrees& agrees, int first, int most, int batch, uint64_t* words) {
  const int candidates = batch - first < most ? batch - first : most;
  uint64_t known = 1;
#pragma unroll 4
  for (int n = 1; n < candidates; n++) known |= static_cast<uint64_t>(agrees(first + n)) << n;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    known &= static_cast<uint64_t>(__shfl_xor_sync(kFullMask, static_cast<unsigned long long>(known), step));
  }
  if (lane_index() == 0) words[warp_index()] = known;
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarp; warp++) known &= words[warp];
  int count = 1;
  while (count < candidates && (known >> count & 1)) count++;
  return count;
}

// One block a (run, key head, sequence): the run's keys and values are copied whole, all copies under way at once, and serve
// all heads of the group, and all of the next sequences whose run lies in the same places (beams, samples of one prompt): those
// are found here, from the tables, and their own blocks end at once. 2 D 64 elements for 4 group sequences D 64 FLOP: bound by
// memory; 32 KB under way a block (D = 128) and several blocks a multiprocessor keep it busy. Each row's arithmetic is the same
// however many rows there are.
template <int D, int strips>
__global__ void __launch_bounds__(kThreads) decode_mma(Operands<bf16, bf16> x, Shape s, Tables tables, Partials partials) {
  constexpr int kWarps = kThreads / kWarp, kRows = 16 * strips;
  SharedCarver carve = dynamic_shared();
  const MmaTiles<D, strips> tiles(carve);
  const int index = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
  const Run run(s, tables, first, index);
  run.check(s, tables, first);
  if (run.count == 0) return;
  const int most = kRows / s.group, row = thread < kRun ? run.row(s, tables, first, thread) : -1;
  auto agrees = [&](int sequence) {  // as far as this thread's token goes
    const Run other(s, tables, sequence, index);
    return other.count == run.count && (thread >= kRun || other.row(s, tables, sequence, thread) == row);
  };
  if (first % most != 0 && __syncthreads_and(agrees(first - 1))) return;
  const int sequences = agreeing(agrees, first, most - first % most, s.batch, tiles.agreeing);
  if (thread < kRun) tiles.rows[thread] = row;
  __syncthreads();

  const int count = sequences * s.group;  // rows: sequence * group + head of the group
  auto query_row = [&](int r) { return static_cast<int64_t>(first + r / s.group) * s.heads + kv_head * s.group + r % s.group; };
  for (int at = thread; at < kRows * (D / 8); at += kThreads) {
    const int r = at / (D / 8), column = at % (D / 8) * 8;
    const bool valid = r < count && column < s.size;
    copy_async_16(tiles.q + r * mma::kPitch<D> + column, valid ? x.q + query_row(r) * s.size + column : x.q, valid);
  }
  const int64_t head_at = static_cast<int64_t>(kv_head) * s.size;
  copy_rows<D>(tiles.k, (run.prompt ? x.k_cache : x.k_steps) + head_at, tiles.rows, s.kv_heads, s.size);
  async_commit();
  copy_rows<D>(tiles.v, (run.prompt ? x.v_cache : x.v_steps) + head_at, tiles.rows, s.kv_heads, s.size);
  async_commit();
  async_wait<1>();
  __syncthreads();

  // Scores of 16 tokens a warp; the rows' highest over all warps.
  constexpr int kColumns = kRun / kWarps, kTiles = kColumns / 8;
  float scores[strips][kTiles][4] = {};
  mma::multiply_rows<D>(scores, tiles.q, tiles.k + warp * kColumns * mma::kPitch<D>);
#pragma unroll
  for (int i = 0; i < strips; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; c++) {
          const bool there = tiles.rows[warp * kColumns + 8 * n + 2 * t + c % 2] >= 0;
          scores[i][n][c] = there ? scores[i][n][c] * s.scale : -INFINITY;
          top = fmaxf(top, scores[i][n][c]);
        }
      }
      top = warp_max<4>(top);
      if (t == 0) tiles.highest[warp * kRows + 16 * i + 8 * half + g] = top;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < strips; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = 16 * i + 8 * half + g;
      float highest = tiles.highest[r], sum = 0;
#pragma unroll
      for (int w = 1; w < kWarps; w++) highest = fmaxf(highest, tiles.highest[w * kRows + r]);
      const float base = highest == -INFINITY ? 0 : highest;
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
        const float low = exp2_approximate(scores[i][n][2 * half] - base);
        const float high = exp2_approximate(scores[i][n][2 * half + 1] - base);
        sum += low + high;
        store_pack<1>(reinterpret_cast<uint32_t*>(tiles.p + r * kProbabilityPitch + warp * kColumns + 8 * n + 2 * t),
                      {{pack_bf16(low, high)}});
      }
      sum = warp_sum<4>(sum);
      if (t == 0) tiles.total[warp * kRows + r] = sum;
      if (t == 0 && warp == 0 && r < count)
        partials.highest[Partials::at(s, first + r / s.group, index, kv_head * s.group + r % s.group)] = highest;
    }
  }
  async_wait<0>();
  __syncthreads();
  if (thread < count) {
    float sum = tiles.total[thread];
#pragma unroll
    for (int w = 1; w < kWarps; w++) sum += tiles.total[w * kRows + thread];
    partials.total[Partials::at(s, first + thread / s.group, index, kv_head * s.group + thread % s.group)] = sum;
  }

  // The product with the values: 16 columns of the head a warp at a time.
  for (int part = warp; part < D / 16 && part * 16 < s.size; part += kWarps) {
    float o[strips][2][4] = {};
#pragma unroll
    for (int k = 0; k < kRun / 16; k++) {
      uint32_t right[4];
      ldmatrix_x4_trans(right, tiles.v + (16 * k + lane % 16) * mma::kPitch<D> + 16 * part + lane / 16 * 8);
      const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
      for (int i = 0; i < strips; i++) {
        uint32_t left[4];
        ldmatrix_x4(left, tiles.p + (16 * i + lane % 16) * kProbabilityPitch + 16 * k + lane / 16 * 8);
        mma_bf16(o[i][0], left, low);
        mma_bf16(o[i][1], left, high);
      }
    }
#pragma unroll
    for (int i = 0; i < strips; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int r = 16 * i + 8 * half + g;
        if (r >= count) continue;
        float* to = partials.o + Partials::at(s, first + r / s.group, index, kv_head * s.group + r % s.group) * s.size;
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const int column = 16 * part + 8 * n + 2 * t;
          if (column < s.size) store_pack<2>(to + column, Pack<float, 2>{{o[i][n][2 * half], o[i][n][2 * half + 1]}});
        }
      }
    }
  }
}

// Four strips of 16 rows where the batch fills more than one, so that beams share their loads, and this GPU's shared memory
// takes them. Sets `served` to false where a group has more rows than that.
inline qt_status run_mma(qt_stream* stream, const Operands<bf16, bf16>& x, const Shape& s, const Tables& tables,
                         const Partials& partials, bool& served) {
  auto of_size = [&](auto head_size) {
    constexpr int D = decltype(head_size)::value;
    auto start = [&](auto strips) {
      constexpr int S = decltype(strips)::value;
      served = s.group <= 16 * S;
      if (!served) return QT_OK;
      return launch(decode_mma<D, S>, dim3(s.runs(), s.kv_heads, s.batch), kThreads, shared_bytes<MmaTiles<D, S>>(), stream, x,
                    s, tables, partials);
    };
    const bool many = static_cast<int64_t>(s.batch) * s.group > 16;
    if (many && static_cast<int64_t>(shared_bytes<MmaTiles<D, 4>>()) <= stream->shared_limit) {
      return start(std::integral_constant<int, 4>{});
    }
    return start(std::integral_constant<int, 1>{});
  };
  // Columns behind the head size are not read, so sizes in between lose nothing that matters here.
  if (s.size <= 64) return of_size(std::integral_constant<int, 64>{});
  if (s.size <= 128) return of_size(std::integral_constant<int, 128>{});
  return of_size(std::integral_constant<int, 256>{});
}

}  // namespace quantune::cuda::decode
