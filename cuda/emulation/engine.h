// The SIMT engine: the threads of a block are fibers that run until they must wait for each other. This header is what the
// kernels and the emulated intrinsics see of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3;

namespace quantune::cuda::emulation {

struct Index {
  unsigned int x, y, z;
};
struct Block;

// The first fields of a fiber: what a kernel reads all the time.
struct ThreadView {
  Index thread, block, block_size, grid_size;
  unsigned int lane, linear;
};
extern __thread ThreadView* current __attribute__((tls_model("initial-exec")));

enum class Kind : uint8_t { kSync, kShuffle, kBallot, kMatch, kReduce, kLoadMatrix, kProduct, kWarpgroup };

// A collective of the lanes in `mask`: each brings the address of what it gives and of what it gets; when all have arrived,
// `combine` computes all results at once.
using Combine = void (*)(unsigned int mask, void* const* given, void* const* taken, int argument);
void collective(Kind kind, unsigned int mask, void* given, void* taken, Combine combine, int argument);

void sync_block();
int sync_block_sum(int value, int* all);  // the sum of `value`, and how many took part
void sync_warp(unsigned int mask);
// Barriers 1 to 15 of the block, for `threads` threads (a multiple of 32); arrive does not wait.
void named_barrier(int id, int threads, bool waits);
// Suspends the thread until `ready(context)` holds; others run meanwhile.
void wait_until(bool (*ready)(void*), void* context, const char* what);
void yield_thread();

// Shared memory of the block that runs: one piece per declaration (named by the address of a static of its own).
void* static_shared(const void* declaration, size_t bytes, size_t alignment);
char* dynamic_shared();
size_t shared_offset(const void* address);  // what a 32-bit shared address holds; fails when it is not shared memory
void mark_red_zone(char* zone);
constexpr size_t kRedZoneBytes = 32;

// cp.async
void copy_async(void* shared, const void* global, int bytes, bool valid);
void async_commit();
void async_wait(int groups);

// Atomics are one step of the engine, unseen by the race check.
enum class Atomic : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange };
uint32_t atomic_compare(void* address, uint64_t expected, uint64_t desired, int bytes, uint64_t* old);

// What a lane reads or writes outside the compiler's sight (ldmatrix, cp.async, TMA), told to the race check.
void note_access(const void* address, size_t bytes, bool writes);

// A mistake of the kernel: the message is printed with the kernel's place, and the launch fails.
[[noreturn]] void kernel_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Runs a grid on the calling thread. Returns false when the kernel made a mistake.
bool run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, const std::function<void()>& body);
// The message of the last mistake (of any thread), for tests; empty when there was none. Taking it clears it.
const char* last_kernel_error();

struct Options {
  enum Schedule : uint8_t { kForward, kReverse, kRandom } schedule = kForward;
  enum Async : uint8_t { kEager, kLazy, kSometimes } async = kEager;
  uint64_t seed = 1;
  int late_us = 0;        // how long a stream dawdles before each piece of work
  int compute = 80;       // what the device says it is
  int devices = 1;        // how many there are
  int memory_mib = 8192;  // of each
  bool quiet = false;     // mistakes are remembered, not printed
};
// From QUANTUNE_EMULATION=reverse,lazy,late:200,seed:7,sm:90,devices:2,memory:64 at first use.
Options& options();

}  // namespace quantune::cuda::emulation

#define threadIdx (::quantune::cuda::emulation::current->thread)
#define blockIdx (::quantune::cuda::emulation::current->block)
#define blockDim (::quantune::cuda::emulation::current->block_size)
#define gridDim (::quantune::cuda::emulation::current->grid_size)
#define warpSize 32
