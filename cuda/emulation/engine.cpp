// Runs grids: block after block, the threads of a block as fibers, in the order that the options choose.
#include "engine.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "block.h"
#include "vector_types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace quantune::cuda::emulation {

__thread ThreadView* current __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

void fiber_main() {
  Block& block = this_block();
  entered(&block.self()->context, &block.scheduler);
  (*block.body)();
  block.lane_left(block.self());
  switch_to(&block.self()->context, &block.scheduler, true);
  std::abort();  // a finished thread is never run again
}

}  // namespace

Block& this_block() {
  static thread_local Block block;
  return block;
}

void kernel_error(const char* format, ...) {
  char text[768];
  va_list arguments;
  va_start(arguments, format);
  int length = std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!current) {
    std::fprintf(stderr, "cuda-emulated: %s (outside of a kernel)\n", text);
    std::abort();
  }
  Block& block = this_block();
  const Fiber* fiber = block.self();
  if (length >= 0 && static_cast<size_t>(length) < sizeof text) {
    std::snprintf(text + length, sizeof text - static_cast<size_t>(length), "; thread (%u, %u, %u) of block (%u, %u, %u)",
                  fiber->thread.x, fiber->thread.y, fiber->thread.z, fiber->block.x, fiber->block.y, fiber->block.z);
  }
  report_error(text);
  block.failed = true;
  switch_to(&block.self()->context, &block.scheduler, true);
  std::abort();
}

Block::Block() {
  size_t bytes = kDynamicShared + kStaticShared + 2048;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  shared = static_cast<char*>(memory);
}

Block::~Block() {
  for (auto& fiber : fibers) fiber->stack.unmap();
  munmap(shared, kDynamicShared + kStaticShared + 2048);
}

// SplitMix64.
uint64_t Block::random() {
  uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

void Block::prepare_grid(const dim3& grid, const dim3& block, size_t bytes, const std::function<void()>* kernel) {
  grid_size = {grid.x, grid.y, grid.z};
  block_size = {block.x, block.y, block.z};
  threads = block.x * block.y * block.z;
  dynamic_bytes = bytes;
  body = kernel;
  while (fibers.size() < threads) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack.map(kStackBytes);
  }
  warps.resize((threads + kLanes - 1) / kLanes);
  random_state = options().seed;
  grid_serial++;
}

void Block::fill_shared() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared, kDynamicShared + kStaticShared + 2048);
#endif
  std::memset(shared, 0xff, dynamic_bytes);
  static_bytes = 0;
  declared.clear();
  red_zones.clear();
  objects.clear();
  named.clear();
  std::memset(shared + dynamic_bytes, 0xff, kRedZoneBytes);
  mark_red_zone(shared + dynamic_bytes);
}

void mark_red_zone(char* zone) {
  Block& block = this_block();
  for (char* known : block.red_zones) {
    if (known == zone) return;
  }
  block.red_zones.push_back(zone);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(zone, kRedZoneBytes);
#endif
}

void Block::check_red_zones() {
  for (char* zone : red_zones) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(zone, kRedZoneBytes);
#endif
    for (size_t i = 0; i < kRedZoneBytes; i++) {
      if (static_cast<unsigned char>(zone[i]) == 0xff) continue;
      char text[200];
      std::snprintf(text, sizeof text, "the kernel wrote %zu bytes behind an array in shared memory (block %u)", i, serial);
      report_error(text);
      failed = true;
      return;
    }
  }
}

void* static_shared(const void* declaration, size_t bytes, size_t alignment) {
  Block& block = this_block();
  for (const Block::Declared& known : block.declared) {
    if (known.declaration == declaration) return known.data;
  }
  size_t at = (block.static_bytes + alignment - 1) / alignment * alignment;
  char* base = block.shared + kDynamicShared + 1024;
  if (at + bytes > kStaticShared - kRedZoneBytes) kernel_error("more than 16 KiB of static shared memory");
  std::memset(base + at, 0xff, bytes);
  size_t zone = (at + bytes + 15) / 16 * 16;
  std::memset(base + at + bytes, 0xff, zone + kRedZoneBytes - at - bytes);
  mark_red_zone(base + zone);
  block.static_bytes = zone + kRedZoneBytes;
  block.declared.push_back({declaration, base + at});
  return base + at;
}

char* dynamic_shared() { return this_block().shared; }

size_t shared_offset(const void* address) {
  Block& block = this_block();
  auto offset = static_cast<size_t>(static_cast<const char*>(address) - block.shared);
  if (offset >= kDynamicShared + kStaticShared + 1024) kernel_error("%p is not in shared memory", address);
  return offset;
}

bool Block::run(const Index& index) {
#if defined(__SANITIZE_ADDRESS__)
  if (failed) {  // the block before was abandoned: the frames of its threads were never left
    for (auto& fiber : fibers) __asan_unpoison_memory_region(fiber->stack.memory, fiber->stack.bytes);
  }
#endif
  failed = false;
  remaining = threads;
  at_barrier = 0;
  barrier_sum = 0;
  fill_shared();
  for (size_t w = 0; w < warps.size(); w++) {
    unsigned int lanes = threads - static_cast<unsigned int>(w) * kLanes;
    warps[w].exists = lanes >= kLanes ? 0xffffffffu : (1u << lanes) - 1;
    warps[w].ready = warps[w].exists;
    warps[w].yielded = warps[w].done = 0;
    warps[w].gatherings.clear();
  }
  for (unsigned int i = 0; i < threads; i++) {
    Fiber& fiber = *fibers[i];
    fiber.thread = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    fiber.block = index;
    fiber.block_size = block_size;
    fiber.grid_size = grid_size;
    fiber.lane = i % kLanes;
    fiber.linear = i;
    fiber.state = State::kReady;
    fiber.copies.clear();
    fiber.groups = 0;
    prepare(&fiber.context, fiber.stack, fiber_main);
  }
  race_begin_block(*this);
  schedule();
  if (!failed) check_red_zones();
  current = nullptr;
  return !failed;
}

Fiber* Block::pick() {
  size_t count = warps.size();
  if (options().schedule == Options::kRandom) {
    size_t first = random() % count;
    for (size_t i = 0; i < count; i++) {
      Warp& warp = warps[(first + i) % count];
      if (!warp.ready) continue;
      unsigned int lane = static_cast<unsigned int>(random() % kLanes);
      while (!(warp.ready >> lane & 1)) lane = (lane + 1) % kLanes;
      return fibers[(first + i) % count * kLanes + lane].get();
    }
    return nullptr;
  }
  bool forward = options().schedule == Options::kForward;
  for (size_t i = 0; i < count; i++) {
    size_t w = forward ? i : count - 1 - i;
    if (!warps[w].ready) continue;
    int lane = forward ? __builtin_ctz(warps[w].ready) : 31 - __builtin_clz(warps[w].ready);
    return fibers[w * kLanes + static_cast<size_t>(lane)].get();
  }
  return nullptr;
}

void Block::run_fiber(Fiber* fiber) {
  warp_of(fiber).ready &= ~(1u << fiber->lane);
  current = fiber;
  switch_to(&scheduler, &fiber->context);
}

void Block::schedule() {
  while (remaining > 0 && !failed) {
    bool progress = false;
    while (Fiber* fiber = pick()) {
      run_fiber(fiber);
      progress = true;
      if (failed || remaining == 0) return;
    }
    for (unsigned int i = 0; i < threads; i++) {
      Fiber* fiber = fibers[i].get();
      bool ready = fiber->state == State::kYielded;
      if (fiber->state == State::kPolling) {
        current = fiber;
        ready = fiber->ready(fiber->ready_context);
      }
      if (ready) make_ready(fiber);
      progress |= ready && fiber->state == State::kReady;
    }
    if (!progress) return explain_deadlock();
  }
}

void Block::make_ready(Fiber* fiber) {
  fiber->state = State::kReady;
  warp_of(fiber).ready |= 1u << fiber->lane;
}

void Block::suspend(State state, const void* place) {
  Fiber* fiber = self();
  fiber->state = state;
  fiber->place = place;
  switch_to(&fiber->context, &scheduler);
}

void Block::explain_deadlock() {
  static const char* const kinds[] = {"__syncwarp",  "a shuffle", "a vote", "a match",
                                      "a reduction", "ldmatrix",  "mma",    "wgmma"};
  std::string text = "deadlock: the threads of a block wait for each other";
  int told = 0;
  const void* last = nullptr;
  for (unsigned int i = 0; i < threads && told < 6; i++) {
    const Fiber& fiber = *fibers[i];
    if (fiber.state == State::kDone || fiber.place == last) continue;
    last = fiber.place;
    std::string what = "a barrier";
    if (fiber.state == State::kNamedBarrier) what = "a named barrier";
    if (fiber.state == State::kPolling) what = fiber.waits_for;
    if (fiber.state == State::kCollective) {
      for (const Gathering& g : warp_of(&fiber).gatherings) {
        char mask[32];
        std::snprintf(mask, sizeof mask, " of the lanes %08x", g.mask);
        if (g.arrived >> fiber.lane & 1) what = std::string(kinds[static_cast<int>(g.kind)]) + mask;
      }
    }
    text += "\n  thread " + std::to_string(i) + " and after it in " + what + ", " + describe_place(fiber.place);
    told++;
  }
  report_error(text.c_str());
  failed = true;
}

// ---- what threads wait for -------------------------------------------------------------------------------------------------

void Block::release_barrier() {
  std::vector<Fiber*> released;
  for (unsigned int i = 0; i < threads; i++) {
    Fiber* fiber = fibers[i].get();
    if (fiber->state != State::kBarrier) continue;
    fiber->sum = barrier_sum;
    fiber->participants = static_cast<int>(at_barrier);
    released.push_back(fiber);
    make_ready(fiber);
  }
  race_join(released.data(), released.size());
  at_barrier = 0;
  barrier_sum = 0;
}

static int enter_barrier(int value, int* all, const void* place) {
  Block& block = this_block();
  Fiber* self = block.self();
  block.at_barrier++;
  block.barrier_sum += value;
  self->state = State::kBarrier;
  if (block.at_barrier == block.remaining) {
    block.release_barrier();
    block.suspend(State::kReady, place);
  } else {
    block.suspend(State::kBarrier, place);
  }
  *all = self->participants;
  return self->sum;
}

void sync_block() {
  int all;
  enter_barrier(0, &all, __builtin_return_address(0));
}
int sync_block_sum(int value, int* all) { return enter_barrier(value, all, __builtin_return_address(0)); }

void Block::lane_left(Fiber* fiber) {
  Warp& warp = warp_of(fiber);
  for (const PendingCopy& copy : fiber->copies) {
    static_cast<void>(copy);
    kernel_error("the thread ends with an asynchronous copy that it has not waited for");
  }
  for (const Gathering& g : warp.gatherings) {
    if (g.mask >> fiber->lane & 1) kernel_error("the lane ends while others wait for it in a collective of mask %08x", g.mask);
  }
  fiber->state = State::kDone;
  warp.done |= 1u << fiber->lane;
  remaining--;
  if (remaining > 0 && at_barrier == remaining) release_barrier();
}

static void gather(Kind kind, unsigned int mask, void* given, void* taken, Combine combine, int argument, const void* place) {
  Block& block = this_block();
  Fiber* self = block.self();
  Warp& warp = block.warp_of(self);
  unsigned int bit = 1u << self->lane;
  if (!(mask & bit)) kernel_error("a lane calls a collective whose mask %08x does not name it", mask);
  if (mask & ~warp.exists) kernel_error("a collective's mask %08x names lanes that the block does not have", mask);
  if (mask & warp.done) kernel_error("a collective's mask %08x names lanes that have ended (%08x)", mask, mask & warp.done);
  size_t at = 0;
  while (at < warp.gatherings.size()) {
    const Gathering& g = warp.gatherings[at];
    if (g.kind == kind && g.mask == mask && g.argument == argument && !(g.arrived & bit)) break;
    at++;
  }
  if (at == warp.gatherings.size()) {
    Gathering fresh;
    fresh.kind = kind;
    fresh.mask = mask;
    fresh.arrived = 0;
    fresh.argument = argument;
    warp.gatherings.push_back(fresh);
  }
  Gathering& g = warp.gatherings[at];
  g.arrived |= bit;
  g.given[self->lane] = given;
  g.taken[self->lane] = taken;
  if (g.arrived != mask) return block.suspend(State::kCollective, place);
  if (combine) combine(mask, g.given, g.taken, argument);
  size_t first = self->linear / kLanes * kLanes;
  Fiber* lanes[kLanes];
  size_t count = 0;
  for (unsigned int lane = 0; lane < kLanes; lane++) {
    if (!(mask >> lane & 1)) continue;
    Fiber* fiber = block.fibers[first + lane].get();
    lanes[count++] = fiber;
    if (fiber != self) block.make_ready(fiber);
  }
  if (kind == Kind::kSync) race_join(lanes, count);
  warp.gatherings.erase(warp.gatherings.begin() + static_cast<std::ptrdiff_t>(at));
  // The last to come must not run ahead of the others under every schedule.
  if (options().schedule == Options::kRandom && block.random() % 2) {
    block.make_ready(self);
    block.suspend(State::kReady, place);
  }
}

void collective(Kind kind, unsigned int mask, void* given, void* taken, Combine combine, int argument) {
  gather(kind, mask, given, taken, combine, argument, __builtin_return_address(0));
}
void sync_warp(unsigned int mask) { gather(Kind::kSync, mask, nullptr, nullptr, nullptr, 0, __builtin_return_address(0)); }

void named_barrier(int id, int threads, bool waits) {
  Block& block = this_block();
  Fiber* self = block.self();
  NamedBarrier& barrier = block.named[id];
  if (threads % kLanes != 0) kernel_error("named barrier %d is for %d threads, which is no multiple of 32", id, threads);
  if (barrier.expected == 0) barrier.expected = threads;
  if (barrier.expected != threads)
    kernel_error("named barrier %d is for %d threads here, %d elsewhere", id, threads, barrier.expected);
  barrier.arrived++;
  barrier.all.push_back(self);
  if (waits) barrier.waiting.push_back(self);
  if (barrier.arrived < barrier.expected) {
    if (waits) block.suspend(State::kNamedBarrier, __builtin_return_address(0));
    return;
  }
  race_join(barrier.all.data(), barrier.all.size());
  for (Fiber* fiber : barrier.waiting) {
    if (fiber != self) block.make_ready(fiber);
  }
  block.named.erase(id);
}

void wait_until(bool (*ready)(void*), void* context, const char* what) {
  if (ready(context)) return;
  Block& block = this_block();
  Fiber* self = block.self();
  self->ready = ready;
  self->ready_context = context;
  self->waits_for = what;
  block.suspend(State::kPolling, __builtin_return_address(0));
}

void yield_thread() { this_block().suspend(State::kYielded, __builtin_return_address(0)); }

bool run_grid(const dim3& grid, const dim3& block_size, size_t shared_bytes, const std::function<void()>& body) {
  Block& block = this_block();
  block.prepare_grid(grid, block_size, shared_bytes, &body);
  uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  uint64_t stride = 1, offset = 0;
  if (options().schedule == Options::kRandom && blocks > 1) {  // a walk through all of them: the stride is coprime
    offset = block.random() % blocks;
    for (stride = block.random() % blocks | 1; stride > 1; stride--) {
      uint64_t a = blocks, b = stride;
      while (b) {
        uint64_t r = a % b;
        a = b;
        b = r;
      }
      if (a == 1) break;
    }
  }
  for (uint64_t i = 0; i < blocks; i++) {
    uint64_t at = options().schedule == Options::kReverse ? blocks - 1 - i : (offset + i * stride) % blocks;
    block.serial = static_cast<unsigned int>(at);
    Index index = {static_cast<unsigned int>(at % grid.x), static_cast<unsigned int>(at / grid.x % grid.y),
                   static_cast<unsigned int>(at / grid.x / grid.y)};
    if (!block.run(index)) return false;
  }
  return true;
}

}  // namespace quantune::cuda::emulation
