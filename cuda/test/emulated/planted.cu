// Mistakes that kernels must not make, planted, to show that the emulation finds them under every schedule; and the same
// kernels without the mistake, to show that it finds nothing where there is nothing. Races are found by the race build alone.
#include <cstdlib>

#include "../../device/async.h"
#include "../../device/mma.h"
#include "../../device/ready.h"
#include "../../device/shared.h"
#include "../../device/warp.h"
#include "../testing.h"

namespace quantune::cuda {
namespace emulation {
void forget_errors();
}

namespace test {
namespace {

// ---- barriers that may be missing
// --------------------------------------------------------------------------------------------

__global__ void reverse_block(const float* x, float* y, bool barrier) {
  QT_SHARED(float, tile, 128);
  const unsigned int i = threadIdx.x;
  tile[i] = x[i];
  if (barrier) __syncthreads();
  y[i] = tile[127 - i];
}

// The second barrier keeps a fast warp from overwriting what a slow one still reads.
__global__ void reuse_tile(const float* x, float* y, bool barrier) {
  QT_SHARED(float, tile, 64);
  const unsigned int i = threadIdx.x;
  float sum = 0.0f;
  for (int round = 0; round < 3; round++) {
    tile[i] = x[i] * static_cast<float>(round);
    __syncthreads();
    sum += tile[63 - i];
    if (barrier) __syncthreads();
  }
  y[i] = sum;
}

__global__ void reverse_warp(const float* x, float* y, bool barrier) {
  QT_SHARED(float, tile, 32);
  const unsigned int i = threadIdx.x;
  tile[i] = x[i];
  if (barrier) __syncwarp();
  y[i] = tile[31 - i] + __shfl_xor_sync(kFullMask, x[i], 1);  // a shuffle orders nothing in memory
}

__global__ void copied_tile(const float* x, float* y, bool barrier) {
  QT_SHARED(float, tile, 128);
  const unsigned int i = threadIdx.x;
  copy_async_4(tile + i, x + i);
  async_commit();
  async_wait<0>();
  if (barrier) __syncthreads();
  y[i] = tile[(i + 64) % 128];
}

// The next tile is fetched into the stage that others may still read.
__global__ void pipeline_stage(const float* x, float* y, bool barrier) {
  QT_SHARED(float, tile, 2 * 64);
  const unsigned int i = threadIdx.x;
  copy_async_4(tile + i, x + i);
  async_commit();
  float sum = 0.0f;
  for (unsigned int round = 0; round < 4; round++) {
    if (barrier) __syncthreads();
    copy_async_4(tile + (round + 1) % 2 * 64 + i, x + i);
    async_commit();
    async_wait<1>();
    __syncthreads();
    sum += tile[round % 2 * 64 + 63 - i];
  }
  async_wait<0>();
  y[i] = sum;
}

__global__ void loaded_matrix(const float* x, float* y, bool barrier) {
  QT_SHARED(float, tile, 64 * 4);
  const unsigned int i = threadIdx.x;
  for (int j = 0; j < 4; j++) tile[4 * i + static_cast<unsigned int>(j)] = x[i];
  if (barrier) __syncthreads();
  uint32_t r[2];
  ldmatrix_x2(r, tile + 4 * ((i + 32) % 64));
  y[i] = __uint_as_float(r[0]);
}

// Two blocks add to one element.
__global__ void two_blocks(const float* x, float* y, bool atomic) {
  if (threadIdx.x != 0) return;
  if (atomic)
    atomicAdd(y, x[0]);
  else
    y[0] += x[0];
}

// The block that comes second reads what the first wrote.
__global__ void handed_on(const float* x, float* y, bool wait) {
  QT_SHARED(int32_t, ticket, 1);
  int32_t* counters = reinterpret_cast<int32_t*>(y + 240);
  const unsigned int i = threadIdx.x;
  if (i == 0) {
    ticket[0] = atomicAdd(counters, 1) % 2;
    if (wait && ticket[0] == 1) wait_ready(counters + 1, 1);
  }
  __syncthreads();
  y[ticket[0] * 32 + i] = ticket[0] == 1 ? y[31 - i] : x[i];
  __syncthreads();
  if (i == 0) signal_ready(counters + 1);
}

using Kernel = void (*)(const float*, float*, bool);

// Runs the kernel without its mistake and with it.
void test_race(const char* name, Kernel kernel, unsigned int blocks, unsigned int threads) {
  Environment& e = environment();
  Buffer<float> x(256, 1.0f), y(256);
  launch(kernel, blocks, threads, 0, e.stream, x.data, y.data, true);
  expect(settle() == QT_OK && std::string(emulation::last_kernel_error()).empty(), name);
#if defined(QT_RACE)
  launch(kernel, blocks, threads, 0, e.stream, x.data, y.data, false);
  settle();
  std::string error = emulation::last_kernel_error();
  emulation::forget_errors();
  e.message = "(planted, found: " + error + ")";
  expect(error.find("data race") != std::string::npos, name);
  e.message.clear();
#endif
}

// ---- mistakes that every build finds
// -------------------------------------------------------------------------------------------

struct Guarded {
  float* values;
  __host__ __device__ Guarded(SharedCarver& carve, int n) { values = carve.array<float>(n); }
};

__global__ void write_behind(float*, int n) {
  SharedCarver carve = dynamic_shared();
  Guarded shared(carve, n);
  if (threadIdx.x == 0) shared.values[n] = 1.0f;
}
__global__ void leave_early(float* y, int) {
  if (threadIdx.x == 7) return;
  y[threadIdx.x] = warp_sum(1.0f);
}
__global__ void diverge(float* y, int) {
  if (threadIdx.x < 16)
    y[threadIdx.x] = __shfl_sync(kFullMask, 1.0f, 0);
  else
    __syncwarp();
}
__global__ void half_barrier(float* y, int) {
  if (threadIdx.x < 32) __syncthreads();
  __syncwarp();
  while (threadIdx.x >= 32 && __ballot_sync(kFullMask, threadIdx.x == 40) && threadIdx.x < 64) {
    y[0] = __shfl_sync(0xffffu, 1.0f, 3);
  }
}
__global__ void unfinished_copy(float* y, int) {
  QT_SHARED(float, tile, 32);
  copy_async_4(tile + threadIdx.x, y + threadIdx.x);
  async_commit();
}
__global__ void crooked_copy(float* y, int) {
  QT_SHARED(float, tile, 32);
  copy_async_16(tile + 1, y);
  async_commit();
  async_wait<0>();
}
__global__ void not_named(float* y, int) { y[threadIdx.x] = __shfl_sync(0x1u, 1.0f, 0); }
__global__ void absent_source(float* y, int) {
  if (threadIdx.x < 8) y[threadIdx.x] = __shfl_sync(0xffu, 1.0f, 9);
}

void test_mistake(const char* name, void (*kernel)(float*, int), unsigned int threads, const char* expected) {
  Environment& e = environment();
  Buffer<float> y(128);
  launch(kernel, 1, threads, shared_bytes<Guarded>(32), e.stream, y.data, 32);
  settle();
  std::string error = emulation::last_kernel_error();
  emulation::forget_errors();
  e.message = "(planted, found: " + error + ")";
  expect(error.find(expected) != std::string::npos, name);
  e.message.clear();
}

__global__ void read_garbage(float* y, int) {
  QT_SHARED(float, tile, 32);
  y[threadIdx.x] = tile[threadIdx.x];
}

void test_poison() {
  Buffer<float> y(128);
  launch(read_garbage, 1, 32, 0, environment().stream, y.data, 32);
  y.get();
  expect(std::isnan(y[0]) && std::isnan(y[31]), "shared memory starts as NaN");
}

}  // namespace

// Called by the program of the primitives.
void test_planted_mistakes() {
  emulation::Options& options = emulation::options();
  const emulation::Options before = options;
  options.quiet = true;
  for (auto schedule : {emulation::Options::kForward, emulation::Options::kReverse, emulation::Options::kRandom}) {
    for (auto async : {emulation::Options::kEager, emulation::Options::kLazy, emulation::Options::kSometimes}) {
      options.schedule = schedule;
      options.async = async;
      test_race("__syncthreads between a write and a read", reverse_block, 1, 128);
      test_race("__syncthreads between a read and the next write", reuse_tile, 1, 64);
      test_race("__syncwarp between the lanes of a warp", reverse_warp, 1, 32);
      test_race("a barrier behind cp.async", copied_tile, 1, 128);
      test_race("a barrier before cp.async reuses a stage", pipeline_stage, 1, 64);
      test_race("a barrier before ldmatrix", loaded_matrix, 1, 64);
      test_race("two blocks and one element", two_blocks, 2, 32);
      test_race("a block that does not wait for another", handed_on, 2, 32);
#if !defined(__SANITIZE_ADDRESS__)  // which ends the program at the first wrong byte
      test_mistake("a write behind an array", write_behind, 32, "behind an array in shared memory");
#endif
      test_mistake("a lane leaves before a collective", leave_early, 32, "lane");
      test_mistake("a warp in two collectives", diverge, 32, "deadlock");
      test_mistake("lanes that do not meet", half_barrier, 64, "mask");
      test_mistake("a copy that nobody waits for", unfinished_copy, 32, "asynchronous copy");
      test_mistake("an unaligned copy", crooked_copy, 32, "not aligned");
      test_mistake("a mask without the caller", not_named, 32, "does not name");
      test_mistake("a shuffle from outside the mask", absent_source, 32, "does not name");
      test_poison();
    }
  }
  options = before;
}

}  // namespace test
}  // namespace quantune::cuda
