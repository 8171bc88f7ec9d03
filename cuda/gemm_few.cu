// Products with few rows of A (a decode step's tokens): every weight is used once or a few times, so its bytes bound the time.
//
// few_kernel, for bfloat16 A and weights in bfloat16 or 4 bits: the weight's rows are the tall side of mma.m16n8k16, the tokens
// its eight columns. A block takes 16 rows of the weight; its warps take runs of k in turn and add up their sums in a fixed
// order. Fragments come straight from global memory: which of a product's k a lane holds is free as long as both factors agree,
// so a lane takes 16 neighbours of each of its rows. Codes become pairs of bfloat16 by a table of 256 pairs in shared memory,
// each lane having its own copy (so no bank conflicts); a block's scale multiplies its float32 sum. n k / 2 bytes, about 2.6
// instructions a code, where four warps' worth a clock have 4.4 of them a code at 3.35 TB/s.
//
// dot_kernel, for anything else: a block a column of C, float32 arithmetic.
#include "device/launch.h"
#include "device/mma.h"
#include "device/shared.h"
#include "device/warp.h"
#include "gemm_kernels.cuh"

namespace quantune::cuda {

namespace {

constexpr int64_t kMostRows = 16, kMostFloatRows = 8;
constexpr int kThreads = 256, kWarps = kThreads / kWarp, kRows = 16;  // rows of the weight
constexpr int kGroup = 64, kGroups = 4, kRun = kGroup * kGroups;      // of k: a scale's, and what a warp takes at once

// The second product, an adapter's: added when a sum is finished, in float32.
struct FewAdapter {
  Source h, b;
  int64_t rank;  // 0: none
  float scale;
  __device__ float part(int64_t token, int64_t column) const {
    float sum = 0.0f;
    for (int64_t i = 0; i < rank; i++) sum += h.at(token, i) * b.at(column, i);
    return sum * scale;
  }
};

struct FewArgs {
  const bf16* x;
  int64_t x_stride;
  const bf16* weight;  // dense
  int64_t weight_stride;
  FourBit four_bit;
  float values[16];
  int64_t k;
  float scale;
  FewAdapter adapter;
  Epilogue epilogue;
};

template <bool four_bit, int token_tiles>
struct FewShared {
  uint32_t* pairs;  // [256][32]
  float* nested_code;
  float* sums;  // [warps][rows][tokens]
  __host__ __device__ explicit FewShared(SharedCarver& carve) {
    pairs = four_bit ? carve.array<uint32_t>(256 * kWarp, 128) : nullptr;
    nested_code = four_bit ? carve.array<float>(256) : nullptr;
    sums = carve.array<float>(kWarps * kRows * token_tiles * 8);
  }
};

// Where a lane reads, at k = 0: its rows g and g + 8 of the weight (or the last row, where those do not exist: what comes of it
// is not stored), and its tokens g, g + 8, … likewise. 64-bit sums of a lane's own, once: of each load they were half of the
// kernel's instructions.
template <bool four_bit, int token_tiles>
struct FewPlace {
  const uint8_t* weight[2];
  int64_t first[2];    // 4 bits: the element where group t of the row starts
  int x[token_tiles];  // elements from args.x on

  __device__ FewPlace(const FewArgs& args, int64_t row, int g, int t) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int64_t wanted = row + g + 8 * r, at = wanted < args.epilogue.n ? wanted : args.epilogue.n - 1;
      first[r] = at * args.k + t * kGroup;
      weight[r] = four_bit ? args.four_bit.codes + (at * args.k + t * 16) / 2
                           : reinterpret_cast<const uint8_t*>(args.weight + at * args.weight_stride + t * 16);
    }
#pragma unroll
    for (int i = 0; i < token_tiles; i++) {
      const int most = static_cast<int>(args.epilogue.m) - 1, wanted = i * 8 + g;
      x[i] = (wanted < most ? wanted : most) * static_cast<int>(args.x_stride) + t * 16;
    }
  }
};

// What a lane holds of a run: 16 neighbours a group of rows g and g + 8. `left`: how much of k there is from the run on.
template <bool four_bit>
struct FewRun;

template <>
struct FewRun<true> {
  Pack<uint32_t, 2> codes[kGroups][2];
  float scale[2];  // of group t
  uint32_t code[2];

  template <class Place>
  __device__ void load(const FewArgs& args, const Place& place, int k, int left, int t) {
    const FourBit& w = args.four_bit;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t* from = place.weight[r] + static_cast<unsigned>(k) / 2;
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        codes[i][r] = {{0, 0}};
        if (i * kGroup < left) codes[i][r] = load_pack<2>(reinterpret_cast<const uint32_t*>(from + i * kGroup / 2));
      }
      scale[r] = 0.0f;
      code[r] = 0;
      if (t * kGroup >= left) continue;
      const int64_t block = (place.first[r] + k) >> w.block_shift;
      if (w.nested_absmax) {
        code[r] = w.absmax[block];
        scale[r] = w.nested_absmax[block >> 8];
      } else {
        scale[r] = reinterpret_cast<const float*>(w.absmax)[block];
      }
    }
  }
};

template <>
struct FewRun<false> {
  Pack<uint32_t, 4> values[kGroups][2][2];

  template <class Place>
  __device__ void load(const FewArgs&, const Place& place, int k, int left, int t) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bf16* from = reinterpret_cast<const bf16*>(place.weight[r]) + k;
#pragma unroll
      for (int i = 0; i < kGroups; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int at = i * kGroup + half * 8;
          values[i][r][half] = {{0, 0, 0, 0}};
          if (at + t * 16 < left) values[i][r][half] = load_pack<4>(reinterpret_cast<const uint32_t*>(from + at));
        }
    }
  }
};

// The pair of values of byte `i` of a word of codes. `pairs` is the lane's own column of the table.
__device__ inline uint32_t look_up(const uint32_t* pairs, uint32_t word, int i) {
  constexpr int kShift = 7;  // a row of the table has 128 bytes
  const uint32_t offset = (i == 0 ? word << kShift : word >> (8 * i - kShift)) & 255u << kShift;
  return *reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(pairs) + offset);
}

// Eight neighbours of a token, or zeros.
__device__ inline Pack<uint32_t, 4> load_eight(const bf16* from, bool there) {
  Pack<uint32_t, 4> x = {{0, 0, 0, 0}};
  if (there) x = load_pack<4>(reinterpret_cast<const uint32_t*>(from));
  return x;
}

template <class Place, int token_tiles>
__device__ inline void multiply_run(float (&sums)[token_tiles][4], const FewRun<true>& run, const FewArgs& args,
                                    const Place& place, const uint32_t* pairs, const float* nested_code, float offset, int k,
                                    int left) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    scale[r] = run.scale[r];
    if (args.four_bit.nested_absmax) scale[r] = __fadd_rn(__fmul_rn(nested_code[run.code[r]], scale[r]), offset);
    if (t * kGroup >= left) scale[r] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kGroups; i++) {
    const float low = __shfl_sync(kFullMask, scale[0], g * 4 + i), high = __shfl_sync(kFullMask, scale[1], g * 4 + i);
    uint32_t a[4][4];
#pragma unroll
    for (int s = 0; s < 4; s++) {
      a[s][0] = look_up(pairs, run.codes[i][0][s / 2], s % 2 * 2);
      a[s][1] = look_up(pairs, run.codes[i][1][s / 2], s % 2 * 2);
      a[s][2] = look_up(pairs, run.codes[i][0][s / 2], s % 2 * 2 + 1);
      a[s][3] = look_up(pairs, run.codes[i][1][s / 2], s % 2 * 2 + 1);
    }
#pragma unroll
    for (int tile = 0; tile < token_tiles; tile++) {
      const bf16* from = args.x + (place.x[tile] + k + i * kGroup);
      const bool there = i * kGroup < left;  // all of the group is, or nothing
      const Pack<uint32_t, 4> x[2] = {load_eight(from, there), load_eight(from + 8, there)};
      float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int s = 0; s < 4; s++) {
        const uint32_t b[2] = {x[s / 2][s % 2 * 2], x[s / 2][s % 2 * 2 + 1]};
        mma_bf16(part, a[s], b);
      }
#pragma unroll
      for (int e = 0; e < 4; e++) sums[tile][e] = fmaf(e < 2 ? low : high, part[e], sums[tile][e]);
    }
  }
}

template <class Place, int token_tiles>
__device__ inline void multiply_run(float (&sums)[token_tiles][4], const FewRun<false>& run, const FewArgs& args,
                                    const Place& place, const uint32_t*, const float*, float, int k, int left) {
  const int t = lane_index() % 4;
#pragma unroll
  for (int i = 0; i < kGroups; i++)
#pragma unroll
    for (int tile = 0; tile < token_tiles; tile++) {
      const bf16* from = args.x + (place.x[tile] + k + i * kGroup);
      const int rest = left - i * kGroup - t * 16;
      const Pack<uint32_t, 4> x[2] = {load_eight(from, rest > 0), load_eight(from + 8, rest > 8)};
#pragma unroll
      for (int s = 0; s < 4; s++) {
        const int at = s % 2 * 2;
        const uint32_t a[4] = {run.values[i][0][s / 2][at], run.values[i][1][s / 2][at], run.values[i][0][s / 2][at + 1],
                               run.values[i][1][s / 2][at + 1]};
        const uint32_t b[2] = {x[s / 2][at], x[s / 2][at + 1]};
        mma_bf16(sums[tile], a, b);
      }
    }
}

template <bool four_bit, int token_tiles>
__global__ void __launch_bounds__(kThreads) few_kernel(const FewArgs args) {
  constexpr int kTokens = token_tiles * 8;
  SharedCarver carve = dynamic_shared();
  const FewShared<four_bit, token_tiles> shared(carve);
  const Epilogue& e = args.epilogue;
  const int g = lane_index() / 4, t = lane_index() % 4, warp = warp_index();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  const FewPlace<four_bit, token_tiles> place(args, first, g, t);
  const int depth = static_cast<int>(args.k);
  FewRun<four_bit> run;
  int k = warp * kRun;
  run.load(args, place, k, depth - k, t);
  const uint32_t* pairs = nullptr;
  float offset = 0.0f;
  if constexpr (four_bit) {
    for (int i = static_cast<int>(threadIdx.x); i < 256 * kWarp; i += kThreads)
      shared.pairs[i] = pack_bf16(args.values[i / kWarp / 16], args.values[i / kWarp % 16]);
    if (args.four_bit.nested_absmax) {
      shared.nested_code[threadIdx.x] = args.four_bit.nested_code[threadIdx.x];
      offset = *args.four_bit.offset;
    }
    pairs = shared.pairs + lane_index();
    __syncthreads();
  }
  float sums[token_tiles][4] = {};
  while (k < depth) {
    const FewRun<four_bit> now = run;
    const int at = k;
    k += kWarps * kRun;
    if (k < depth) run.load(args, place, k, depth - k, t);
    multiply_run(sums, now, args, place, pairs, shared.nested_code, offset, at, depth - at);
  }
#pragma unroll
  for (int tile = 0; tile < token_tiles; tile++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      shared.sums[(warp * kRows + g + i / 2 * 8) * kTokens + tile * 8 + 2 * t + i % 2] = sums[tile][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kTokens; i += kThreads) {
    const int64_t token = i % kTokens, column = first + i / kTokens;
    if (token >= e.m || column >= e.n) continue;
    float sum = 0.0f;
    for (int w = 0; w < kWarps; w++) sum += shared.sums[w * kRows * kTokens + i];
    e.store(token, column, 0, sum * args.scale + args.adapter.part(token, column));
  }
}

struct DotArgs {
  Source a, b;
  bool vector_a, vector_b;
  int64_t k;
  float scale;
  FewAdapter adapter;
  Epilogue epilogue;
};

constexpr int kDotThreads = 128;

template <int rows>
__global__ void __launch_bounds__(kDotThreads) dot_kernel(const DotArgs args) {
  QT_SHARED(float, partial, kDotThreads / kWarp * rows);
  const Epilogue& e = args.epilogue;
  const int64_t column = blockIdx.x;
  float sums[rows] = {};
  for (int64_t k = static_cast<int64_t>(threadIdx.x) * 4; k < args.k; k += kDotThreads * 4) {
    const int valid = args.k - k < 4 ? static_cast<int>(args.k - k) : 4;
    float b[4];
    load_four(args.b, args.vector_b, column * args.b.outer_stride + k, valid, b);
#pragma unroll
    for (int i = 0; i < rows; i++) {
      if (i >= e.m) break;
      float a[4];
      load_four(args.a, args.vector_a, i * args.a.outer_stride + k, valid, a);
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i] = fmaf(a[j], b[j], sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < rows; i++) {
    sums[i] = warp_sum(sums[i]);
    if (lane_index() == 0) partial[warp_index() * rows + i] = sums[i];
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= rows || row >= e.m) return;
  float sum = 0.0f;
  for (int w = 0; w < kDotThreads / kWarp; w++) sum += partial[w * rows + row];
  e.store(row, column, 0, sum * args.scale + args.adapter.part(row, column));
}

bool aligned(const Factor& f) { return f.outer_stride % 8 == 0 && reinterpret_cast<uintptr_t>(f.data) % 16 == 0; }

template <bool four_bit>
qt_status launch_few(qt_stream* stream, const FewArgs& args) {
  const unsigned grid = static_cast<unsigned>(ceil_div<int64_t>(args.epilogue.n, kRows));
  if (args.epilogue.m <= 8)
    return launch(few_kernel<four_bit, 1>, grid, kThreads, shared_bytes<FewShared<four_bit, 1>>(), stream, args);
  return launch(few_kernel<four_bit, 2>, grid, kThreads, shared_bytes<FewShared<four_bit, 2>>(), stream, args);
}

}  // namespace

bool is_few(int64_t m, const Product& p) {
  return m <= (p.a.dtype == QT_BFLOAT16 ? kMostRows : kMostFloatRows) && p.a.k_stride == 1 && p.b.k_stride == 1;
}

qt_status gemm_few(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c) {
  const Product& p = products[0];
  FewAdapter adapter{};
  if (count > 1) adapter = {Source(products[1].a), Source(products[1].b), products[1].k, products[1].scale};
  const bool few = p.k > 0 && p.k < (1 << 26) && p.a.outer_stride < (1 << 26);  // places in x fit 32 bits
  const bool four_bit = p.b.quant && p.k % kGroup == 0 && p.b.outer_stride == p.k && aligned(p.b);
  const bool dense = p.b.dtype == QT_BFLOAT16 && p.k % 8 == 0 && aligned(p.b);
  if (p.a.dtype == QT_BFLOAT16 && few && p.k % 8 == 0 && aligned(p.a) && (four_bit || dense)) {
    FewArgs args{};
    args.x = static_cast<const bf16*>(p.a.data);
    args.x_stride = p.a.outer_stride;
    args.weight = static_cast<const bf16*>(p.b.data);
    args.weight_stride = p.b.outer_stride;
    args.k = p.k;
    args.scale = p.scale;
    args.adapter = adapter;
    args.epilogue = Epilogue(c, m, n, nullptr);
    if (!four_bit) return launch_few<false>(stream, args);
    args.four_bit = FourBit(p.b.data, p.b.quant, p.b.dtype);
    four_bit_code(p.b.dtype, args.values);
    return launch_few<true>(stream, args);
  }
  DotArgs args = {Source(p.a), Source(p.b), may_load_four(p.a),        may_load_four(p.b), p.k,
                  p.scale,     adapter,     Epilogue(c, m, n, nullptr)};
  const unsigned grid = static_cast<unsigned>(n);
  if (m == 1) return launch(dot_kernel<1>, grid, kDotThreads, 0, stream, args);
  if (m <= 4) return launch(dot_kernel<4>, grid, kDotThreads, 0, stream, args);
  if (m <= 8) return launch(dot_kernel<8>, grid, kDotThreads, 0, stream, args);
  return launch(dot_kernel<16>, grid, kDotThreads, 0, stream, args);
}

}  // namespace quantune::cuda
