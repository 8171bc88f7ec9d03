// Each wrapper of cuda/device against plain C++: what can be wrong here is our reading of fragment layouts, so this runs on a
// GPU before anything else does (npm run test:gpu), and under emulation in CI.
#include <cstdlib>
#include <type_traits>

#include "../device/async.h"
#include "../device/mma.h"
#include "../device/ready.h"
#include "../device/shared.h"
#include "../device/warp.h"
#include "testing.h"

namespace quantune::cuda::test {
namespace {

qt_stream* stream() { return environment().stream; }

// ---- warps and blocks ------------------------------------------------------------------------------------------------------

__global__ void collectives(int* out, float* sums) {
  const int lane = lane_index(), i = static_cast<int>(threadIdx.x);
  int* mine = out + i * 8;
  mine[0] = __shfl_sync(kFullMask, lane * 3, 31 - lane);
  mine[1] = __shfl_xor_sync(kFullMask, lane, 5);
  mine[2] = __shfl_down_sync(kFullMask, lane, 4);
  mine[3] = __shfl_up_sync(kFullMask, lane, 4, 16);
  mine[4] = static_cast<int>(__ballot_sync(kFullMask, lane % 3 == 0));
  mine[5] = static_cast<int>(__match_any_sync(kFullMask, lane / 7));
  mine[6] = 0;
  if (lane < 12) mine[6] = __shfl_sync(0xfffu, lane, 11);  // a part of the warp
  __syncwarp();
  mine[7] = __syncthreads_count(i % 5 == 0);
  sums[i] = block_sum(static_cast<float>(i)) + block_max(static_cast<float>(i % 50));
}

void test_collectives() {
  Buffer<int> out(128 * 8);
  Buffer<float> sums(128);
  expect(launch(collectives, 1, 128, 0, stream(), out.data, sums.data) == QT_OK, "launch");
  out.get();
  sums.get();
  bool shuffles = true, votes = true, reductions = true;
  for (int i = 0; i < 128; i++) {
    const int lane = i % 32, *mine = &out[static_cast<size_t>(i) * 8];
    shuffles &= mine[0] == (31 - lane) * 3 && mine[1] == (lane ^ 5) && mine[2] == (lane + 4 < 32 ? lane + 4 : lane);
    shuffles &= mine[3] == (lane % 16 >= 4 ? lane - 4 : lane) && mine[6] == (lane < 12 ? 11 : 0);
    unsigned int third = 0, same = 0;
    for (int l = 0; l < 32; l++) {
      if (l % 3 == 0) third |= 1u << l;
      if (l / 7 == lane / 7) same |= 1u << l;
    }
    votes &= static_cast<unsigned int>(mine[4]) == third && static_cast<unsigned int>(mine[5]) == same && mine[7] == 26;
    reductions &= sums[static_cast<size_t>(i)] == 127 * 64 + 49;
  }
  expect(shuffles, "shuffles");
  expect(votes, "votes");
  expect(reductions, "sums and maxima of a block");
}

// ---- asynchronous copies and ldmatrix --------------------------------------------------------------------------------------

struct Stages {
  bf16* tile;
  __host__ __device__ Stages(SharedCarver& carve, int stages) { tile = carve.array<bf16>(stages * 16 * 16, 128); }
};

// Copies tiles of 16 x 16 through a ring of stages; each lane notes what ldmatrix gives it, the sums notice a stale tile.
__global__ void pipeline(const bf16* x, int tiles, uint32_t* plain, uint32_t* trans, uint32_t* pairs) {
  constexpr int kStages = 3;
  SharedCarver carve = dynamic_shared();
  Stages stages(carve, kStages);
  const int lane = lane_index();
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      bf16* to = stages.tile + tile % kStages * 256 + lane * 8;
      copy_async_16(to, x + tile * 256 + lane * 8, tile != 1 || lane < 30);  // the last row of tile 1 is zeros
    }
    async_commit();
  };
  for (int tile = 0; tile < kStages - 1; tile++) fetch(tile);
  for (int tile = 0; tile < tiles; tile++) {
    async_wait<kStages - 2>();
    __syncwarp();
    fetch(tile + kStages - 1);
    const bf16* row = stages.tile + tile % kStages * 256 + lane % 16 * 16 + lane / 16 * 8;
    uint32_t r[4], p[2];
    ldmatrix_x4(r, row);
    for (int i = 0; i < 4; i++) plain[(tile * 32 + lane) * 4 + i] = r[i];
    ldmatrix_x4_trans(r, row);
    for (int i = 0; i < 4; i++) trans[(tile * 32 + lane) * 4 + i] = r[i];
    ldmatrix_x2(p, row);
    pairs[(tile * 32 + lane) * 4] = p[0], pairs[(tile * 32 + lane) * 4 + 1] = p[1];
    ldmatrix_x2_trans(p, row);
    pairs[(tile * 32 + lane) * 4 + 2] = p[0], pairs[(tile * 32 + lane) * 4 + 3] = p[1];
    __syncwarp();
  }
  async_wait<0>();
}

void test_pipeline() {
  constexpr int kTiles = 5;
  Buffer<bf16> x(kTiles * 256);
  for (unsigned int i = 0; i < kTiles * 256; i++) x[i] = from_float<bf16>(static_cast<float>(i % 251));
  x.put();
  Buffer<uint32_t> plain(kTiles * 128), trans(kTiles * 128), pairs(kTiles * 128);
  expect(
      launch(pipeline, 1, 32, shared_bytes<Stages>(3), stream(), x.data, kTiles, plain.data, trans.data, pairs.data) == QT_OK,
      "launch");
  plain.get();
  trans.get();
  pairs.get();
  bool right = true, right_trans = true, right_pairs = true;
  auto at = [&](int tile, int row, int column) -> uint32_t {
    if (tile == 1 && row == 15) return 0;
    return __bfloat16_as_ushort(x[static_cast<size_t>(tile * 256 + row * 16 + column)]);
  };
  for (int tile = 0; tile < kTiles; tile++) {
    for (int lane = 0; lane < 32; lane++) {
      for (int m = 0; m < 4; m++) {  // matrices: rows 0-7 and 8-15 of the left half, then of the right half
        int top = m % 2 * 8, left = m / 2 * 8, g = lane / 4, t = lane % 4;
        uint32_t p = at(tile, top + g, left + 2 * t) | at(tile, top + g, left + 2 * t + 1) << 16;
        uint32_t q = at(tile, top + 2 * t, left + g) | at(tile, top + 2 * t + 1, left + g) << 16;
        auto index = static_cast<size_t>((tile * 32 + lane) * 4);
        right &= plain[index + static_cast<size_t>(m)] == p;
        right_trans &= trans[index + static_cast<size_t>(m)] == q;
        if (m < 2) right_pairs &= pairs[index + static_cast<size_t>(m)] == p && pairs[index + 2 + static_cast<size_t>(m)] == q;
      }
    }
  }
  expect(right, "cp.async and ldmatrix.x4");
  expect(right_trans, "ldmatrix.x4.trans");
  expect(right_pairs, "ldmatrix.x2 and .trans");
}

// ---- mma -------------------------------------------------------------------------------------------------------------------

// A [16, 16] and B [16, 8] row-major; fragments gathered element by element, as mma.h says they lie.
template <class T>
__global__ void product(const T* a, const T* b, float* d) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  auto pair = [](T low, T high) {
    uint16_t l, h;
    memcpy(&l, &low, 2);
    memcpy(&h, &high, 2);
    return static_cast<uint32_t>(l) | static_cast<uint32_t>(h) << 16;
  };
  auto from_a = [&](int row, int column) { return pair(a[row * 16 + column], a[row * 16 + column + 1]); };
  auto from_b = [&](int row, int column) { return pair(b[row * 8 + column], b[(row + 1) * 8 + column]); };
  const uint32_t fa[4] = {from_a(g, 2 * t), from_a(g + 8, 2 * t), from_a(g, 2 * t + 8), from_a(g + 8, 2 * t + 8)};
  const uint32_t fb[2] = {from_b(2 * t, g), from_b(2 * t + 8, g)};
  float fd[4];
  for (int i = 0; i < 4; i++) fd[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if constexpr (std::is_same_v<T, bf16>)
    mma_bf16(fd, fa, fb);
  else
    mma_fp16(fd, fa, fb);
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}

template <class T>
void test_product(const char* name) {
  Buffer<T> a(256), b(128);
  Buffer<float> d(128);
  for (unsigned int i = 0; i < 256; i++) a[i] = from_float<T>(number(i));
  for (unsigned int i = 0; i < 128; i++) b[i] = from_float<T>(number(1000 + i)), d[i] = number(2000 + i);
  a.put();
  b.put();
  d.put();
  std::vector<float> expected = d.host;
  for (size_t i = 0; i < 16; i++) {
    for (size_t j = 0; j < 8; j++) {
      for (size_t k = 0; k < 16; k++) expected[i * 8 + j] += to_float(a[i * 16 + k]) * to_float(b[k * 8 + j]);
    }
  }
  expect(launch(product<T>, 1, 32, 0, stream(), a.data, b.data, d.data) == QT_OK, "launch");
  d.get();
  expect(d.host == expected, name);  // sums of few multiples of 2^-12: exact in any order
}

__global__ void product_int8(const int8_t* a, const int8_t* b, int32_t* d) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  auto from_a = [&](int row, int column) {
    uint32_t quad = 0;
    for (int i = 0; i < 4; i++) quad |= static_cast<uint32_t>(static_cast<uint8_t>(a[row * 32 + column + i])) << (8 * i);
    return quad;
  };
  auto from_b = [&](int row, int column) {
    uint32_t quad = 0;
    for (int i = 0; i < 4; i++) quad |= static_cast<uint32_t>(static_cast<uint8_t>(b[(row + i) * 8 + column])) << (8 * i);
    return quad;
  };
  const uint32_t fa[4] = {from_a(g, 4 * t), from_a(g + 8, 4 * t), from_a(g, 4 * t + 16), from_a(g + 8, 4 * t + 16)};
  const uint32_t fb[2] = {from_b(4 * t, g), from_b(4 * t + 16, g)};
  int32_t fd[4] = {0, 0, 0, 0};
  mma_int8(fd, fa, fb);
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}

void test_product_int8() {
  Buffer<int8_t> a(16 * 32), b(32 * 8);
  Buffer<int32_t> d(128);
  for (unsigned int i = 0; i < 512; i++) a[i] = static_cast<int8_t>(number(i) * 127);
  for (unsigned int i = 0; i < 256; i++) b[i] = static_cast<int8_t>(number(i + 700) * 127);
  a.put();
  b.put();
  std::vector<int32_t> expected(128);
  for (size_t i = 0; i < 16; i++) {
    for (size_t j = 0; j < 8; j++) {
      for (size_t k = 0; k < 32; k++) expected[i * 8 + j] += a[i * 32 + k] * b[k * 8 + j];
    }
  }
  expect(launch(product_int8, 1, 32, 0, stream(), a.data, b.data, d.data) == QT_OK, "launch");
  d.get();
  expect(d.host == expected, "mma of int8");
}

// ---- conversions, atomics, reports -----------------------------------------------------------------------------------------

__global__ void convert(const float* x, bf16* b, fp16* h, float* packed, int n) {
  int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  b[i] = from_float<bf16>(x[i]);
  h[i] = from_float<fp16>(x[i]);
  float2 both = unpack_bf16(pack_bf16(x[i], -x[i]));
  packed[2 * i] = both.x;
  packed[2 * i + 1] = both.y;
}

void test_conversions() {
  const std::vector<float> values = {0.0f,     -0.0f,     1.0f,   1.00390625f, 1.01171875f, 3.0e38f,  1e-8f,  6.0e-8f, 65504.0f,
                                     65520.0f, 65519.99f, 1e-40f, 3.14159274f, -2.71828f,   INFINITY, -1e30f, 0.1f};
  const int n = static_cast<int>(values.size());
  Buffer<float> x(values.size()), packed(2 * values.size());
  Buffer<bf16> b(values.size());
  Buffer<fp16> h(values.size());
  x.host = values;
  x.put();
  expect(launch(convert, 1, 32, 0, stream(), x.data, b.data, h.data, packed.data, n) == QT_OK, "launch");
  b.get();
  h.get();
  packed.get();
  bool brain = true, half = true;
  for (size_t i = 0; i < values.size(); i++) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], 4);
    auto rounded = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    brain &= __bfloat16_as_ushort(b[i]) == rounded && packed[2 * i] == to_float(b[i]) && packed[2 * i + 1] == -to_float(b[i]);
    half &= std::isinf(values[i]) || std::fabs(values[i]) >= 65520.0f
                ? std::isinf(to_float(h[i]))
                : std::fabs(to_float(h[i]) - values[i]) <= std::fmax(std::fabs(values[i]) / 2048.0f, 2.9802322e-8f);
  }
  expect(brain, "conversion to bfloat16");
  expect(half, "conversion to float16");
}

__global__ void count(int* counter, float* sum, unsigned long long* largest, Report report) {
  int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(counter, 1);
  atomicAdd(sum, 0.5f);
  atomicMax(largest, static_cast<unsigned long long>(i) << 33);
  if (i == 77) report.raise(i, 2, -3);
}

void test_atomics() {
  Buffer<int> counter(1);
  Buffer<float> sum(1);
  Buffer<unsigned long long> largest(1);
  Report report = stream()->report("value %lld of %lld is %lld");
  environment().refused.clear();
  expect(launch(count, 4, 64, 0, stream(), counter.data, sum.data, largest.data, report) == QT_OK, "launch");
  environment().backend->operation_done(stream());
  counter.get();
  sum.get();
  largest.get();
  expect(counter[0] == 256 && sum[0] == 128.0f && largest[0] == 255ull << 33, "atomics");
  expect(environment().refused == "value 77 of 2 is -3", "a kernel's report");
}

// ---- counters between blocks -----------------------------------------------------------------------------------------------

constexpr int kRelayBlocks = 500, kRelayThreads = 64;

// The block with ticket t adds one to what the block before it wrote, in reverse order.
__global__ void relay(int32_t* counters, int* values) {
  QT_SHARED(int32_t, ticket, 1);
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) {
    ticket[0] = atomicAdd(counters, 1);
    if (ticket[0] > 0) wait_ready(counters + ticket[0], 1);
  }
  __syncthreads();
  int* mine = values + ticket[0] * kRelayThreads;
  mine[i] = ticket[0] == 0 ? i : mine[-1 - i] + 1;
  __syncthreads();
  if (i == 0) signal_ready(counters + ticket[0] + 1);
}

void test_relay() {
  Buffer<int32_t> counters(kRelayBlocks + 1);
  Buffer<int> values(kRelayBlocks * kRelayThreads);
  expect(launch(relay, kRelayBlocks, kRelayThreads, 0, stream(), counters.data, values.data) == QT_OK, "launch");
  values.get();
  bool right = true;
  for (int t = 0; t < kRelayBlocks; t++)
    for (int i = 0; i < kRelayThreads; i++)
      right &= values[static_cast<size_t>(t * kRelayThreads + i)] == (t % 2 ? kRelayThreads - 1 - i : i) + t;
  expect(right, "a block waits for what another wrote");
}

}  // namespace

void test_hopper();
#if defined(QT_EMULATED)
void test_planted_mistakes();
#endif

}  // namespace quantune::cuda::test

int main(int argc, char** argv) {
  using namespace quantune::cuda::test;
  static int32_t stop = 0;
  static const qt_host host = {remember, [](qt_stream*, int64_t, const char* text) { environment().refused = text; }, &stop};
  Environment& e = environment();
#if defined(QT_EMULATED)
  quantune::cuda::emulation::options().compute = 90;
#endif
  e.stream = e.backend->open(&host, argc > 1 ? std::atoi(argv[1]) : 0);
  if (!e.stream) {
    std::printf("no device: %s\n", e.backend->refusal());
    return 2;
  }
  test_collectives();
  test_pipeline();
  test_product<quantune::cuda::bf16>("mma of bfloat16");
  test_product<quantune::cuda::fp16>("mma of float16");
  test_product_int8();
  test_conversions();
  test_atomics();
  test_relay();
  test_hopper();
#if defined(QT_EMULATED)
  test_planted_mistakes();
#endif
  e.backend->close(e.stream);
  std::printf("primitives: %d checks, %d failed\n", e.checks, e.failures);
  return e.failures ? 1 : 0;
}
