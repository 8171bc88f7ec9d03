// What the parts of the engine share: the state of the block that runs on this host thread.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace quantune::cuda::emulation {

constexpr int kLanes = 32;
constexpr size_t kMostThreads = 1024;
constexpr size_t kDynamicShared = 227 * 1024;
constexpr size_t kStaticShared = 16 * 1024;  // what device/launch.h leaves for it

enum class State : uint8_t { kReady, kCollective, kBarrier, kNamedBarrier, kPolling, kYielded, kDone };

// A copy to shared memory that may not have landed yet.
struct PendingCopy {
  char* to;
  const char* from;
  int bytes;
  bool valid, landed;
  int group;  // the number it was committed with, -1 before that
};

struct Fiber : ThreadView {
  State state;
  Context context;
  Stack stack;
  const void* place;  // where in the kernel it waits
  bool (*ready)(void*);
  void* ready_context;
  const char* waits_for;
  int sum, participants;  // what the last __syncthreads_count gave
  std::vector<PendingCopy> copies;
  int groups;
};

// Lanes on their way to one collective.
struct Gathering {
  Kind kind;
  unsigned int mask, arrived;
  int argument;
  void* given[kLanes];
  void* taken[kLanes];
};

struct Warp {
  unsigned int exists, ready, yielded, done;
  std::vector<Gathering> gatherings;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  std::vector<Fiber*> waiting, all;
};

struct Block {
  Block();
  ~Block();
  bool run(const Index& index);
  void prepare_grid(const dim3& grid, const dim3& block, size_t dynamic_bytes, const std::function<void()>* body);

  Fiber* self() { return static_cast<Fiber*>(current); }
  Warp& warp_of(const Fiber* fiber) { return warps[fiber->linear / kLanes]; }
  void make_ready(Fiber* fiber);
  void suspend(State state, const void* place);
  void release_barrier();
  void lane_left(Fiber* fiber);
  void land_some();
  uint64_t random();

  Index grid_size, block_size;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  unsigned int threads = 0, remaining = 0;
  unsigned int at_barrier = 0;
  int barrier_sum = 0;
  std::map<int, NamedBarrier> named;
  Context scheduler;
  bool failed = false;
  uint64_t random_state = 1;
  unsigned int serial = 0;  // of the block in its grid, and of the grid: for the race check
  uint64_t grid_serial = 0;

  char* shared = nullptr;  // dynamic shared memory, then static
  size_t dynamic_bytes = 0, static_bytes = 0;
  struct Declared {
    const void* declaration;
    char* data;
  };
  std::vector<Declared> declared;
  std::vector<char*> red_zones;
  std::map<void*, std::vector<char>> objects;  // of the Hopper emulation, by shared address

 private:
  void schedule();
  Fiber* pick();
  void run_fiber(Fiber* fiber);
  void check_red_zones();
  void fill_shared();
  void explain_deadlock();
};

Block& this_block();
std::string describe_place(const void* address);
void report_error(const char* text);

// ---- race.cpp, in the race build alone -------------------------------------------------------------------------------------
#if defined(QT_RACE)
void race_begin_block(Block& block);
void race_join(Fiber* const* fibers, size_t count);
void race_access(Fiber* fiber, const void* address, size_t bytes, bool writes, const void* place);
using RaceClock = std::vector<uint32_t>;
void race_release(Fiber* fiber, RaceClock* object);
void race_acquire(Fiber* fiber, const RaceClock& object);
// Between blocks: who observes a counter comes after all that was published through it.
void race_publish(Fiber* fiber, const void* counter);
void race_observe(Fiber* fiber, const void* counter);
#else
inline void race_begin_block(Block&) {}
inline void race_join(Fiber* const*, size_t) {}
inline void race_access(Fiber*, const void*, size_t, bool, const void*) {}
struct RaceClock {};
inline void race_release(Fiber*, RaceClock*) {}
inline void race_acquire(Fiber*, const RaceClock&) {}
inline void race_publish(Fiber*, const void*) {}
inline void race_observe(Fiber*, const void*) {}
#endif

}  // namespace quantune::cuda::emulation
