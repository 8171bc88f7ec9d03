// Data races between the threads of a block, and between blocks of a grid, found by vector clocks (as FastTrack and
// ThreadSanitizer find them, exactly here: one host thread runs all of it). Kernels are compiled with -fsanitize=thread and
// call the functions below for every access; the engine is not, and tells of what its intrinsics read and write. Happens-before
// comes from
// __syncthreads, __syncwarp, named barriers and mbarriers, between blocks from the counters of ready.h; shuffles and votes give
// none, as on the hardware. Atomics are not seen.
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "block.h"

namespace quantune::cuda::emulation {

bool is_device_memory(const void* address);

namespace {

// One access to bytes of an 8-byte word: by whom, at which tick of its own clock.
struct Access {
  unsigned int block, thread;
  uint32_t tick;
  uint8_t bytes;  // mask
  bool writes;
  const void* place;
};
struct Word {
  uint64_t era = 0;  // what is known is of this block (shared memory) or grid (global memory)
  std::vector<Access> accesses;
};

constexpr size_t kPageWords = 512, kMostPages = 8192;
struct Page {
  Word words[kPageWords];
};

// How far other blocks of the grid had come when they published what a thread has observed.
using OtherBlocks = std::map<unsigned int, RaceClock>;

void raise(RaceClock* to, const RaceClock& from) {
  if (to->size() < from.size()) to->resize(from.size(), 0);
  for (size_t t = 0; t < from.size(); t++) (*to)[t] = from[t] > (*to)[t] ? from[t] : (*to)[t];
}
void raise(OtherBlocks* to, const OtherBlocks& from) {
  for (const auto& [block, clock] : from) raise(&(*to)[block], clock);
}

// Clocks of the block that runs; words of global memory outlive blocks.
struct Clocks {
  std::vector<RaceClock> of;          // [thread][thread]
  std::vector<OtherBlocks> observed;  // [thread]
  std::unordered_map<const void*, OtherBlocks> published;
  std::vector<Word> shared = std::vector<Word>((kDynamicShared + kStaticShared + 2048) / 8 + 1);
  std::unordered_map<uint64_t, std::unique_ptr<Page>> global;
  uint64_t last_page = 0, blocks = 0, grid = 0;
  Page* last = nullptr;

  Word& global_word(uint64_t word) {
    uint64_t page = word / kPageWords;
    if (!last || page != last_page) {
      if (global.size() > kMostPages) global.clear(), last = nullptr;
      auto& found = global[page];
      if (!found) found.reset(new Page);
      last = found.get();
      last_page = page;
    }
    return last->words[word % kPageWords];
  }
};
Clocks& clocks() {
  static thread_local Clocks instance;
  return instance;
}

void tell(const Block& block, const Access& before, const Access& now, const void* address, bool in_shared) {
  char text[2400];
  std::string first = describe_place(before.place), second = describe_place(now.place);
  size_t offset = in_shared ? static_cast<size_t>(static_cast<const char*>(address) - block.shared) : 0;
  std::snprintf(
      text, sizeof text,
      "data race in %s memory%s%s: thread %u of block %u %s it at %s,\n  thread %u of block %u %s it at %s, and nothing "
      "orders the two",
      in_shared ? "shared" : "global", in_shared ? ", offset " : "", in_shared ? std::to_string(offset).c_str() : "",
      before.thread, before.block, before.writes ? "writes" : "reads", first.c_str(), now.thread, now.block,
      now.writes ? "writes" : "reads", second.c_str());
  report_error(text);
}

bool has_observed(const OtherBlocks& others, const Access& before) {
  if (others.empty()) return false;
  auto found = others.find(before.block);
  return found != others.end() && before.thread < found->second.size() && found->second[before.thread] >= before.tick;
}

// Compares with what is known about one word, and remembers. False: a race.
bool touch(Clocks& c, Word& word, const Access& now, const void* address, Block& block, bool in_shared) {
  const uint64_t era = in_shared ? c.blocks : c.grid;
  if (word.era != era) {
    word.era = era;
    word.accesses.clear();
  }
  if (!word.accesses.empty()) {  // the same again
    const Access& last = word.accesses.back();
    if (last.thread == now.thread && last.tick == now.tick && last.block == now.block && last.bytes == now.bytes &&
        (last.writes || !now.writes)) {
      return true;
    }
  }
  const RaceClock& mine = c.of[now.thread];
  size_t kept = 0, other_blocks = 0;
  for (size_t i = 0; i < word.accesses.size(); i++) {
    const Access& before = word.accesses[i];
    bool same_block = before.block == now.block;
    bool ordered = same_block ? before.thread == now.thread || mine[before.thread] >= before.tick
                              : has_observed(c.observed[now.thread], before);
    bool conflict = (before.bytes & now.bytes) != 0 && (before.writes || now.writes);
    if (conflict && !ordered) {
      tell(block, before, now, address, in_shared);
      return false;
    }
    // What is ordered before this access and covered by it needs no more comparing: whoever conflicts with it conflicts with
    // this.
    bool covered = ordered && (before.bytes & ~now.bytes) == 0 && (now.writes || !before.writes);
    // Reads by two other blocks say all that those by a thousand would.
    if (!same_block && !now.writes && before.bytes == now.bytes) covered = ++other_blocks > 2;
    if (!covered) word.accesses[kept++] = before;
  }
  word.accesses.resize(kept);
  word.accesses.push_back(now);
  return true;
}

}  // namespace

void race_begin_block(Block& block) {
  Clocks& c = clocks();
  if (c.grid != block.grid_serial) c.published.clear();
  c.grid = block.grid_serial;
  c.blocks++;
  c.observed.assign(block.threads, {});
  c.of.resize(block.threads);
  for (unsigned int i = 0; i < block.threads; i++) {
    c.of[i].assign(block.threads, 0);
    c.of[i][i] = 1;
  }
}

void race_join(Fiber* const* fibers, size_t count) {
  Clocks& c = clocks();
  if (count < 2) return;
  size_t threads = c.of.size();
  RaceClock joined = c.of[fibers[0]->linear];
  for (size_t i = 1; i < count; i++) {
    const RaceClock& other = c.of[fibers[i]->linear];
    for (size_t t = 0; t < threads; t++) joined[t] = other[t] > joined[t] ? other[t] : joined[t];
  }
  for (size_t i = 0; i < count; i++) {
    c.of[fibers[i]->linear] = joined;
    c.of[fibers[i]->linear][fibers[i]->linear]++;
  }
  OtherBlocks others;
  for (size_t i = 0; i < count; i++) raise(&others, c.observed[fibers[i]->linear]);
  if (others.empty()) return;
  for (size_t i = 0; i < count; i++) c.observed[fibers[i]->linear] = others;
}

void race_publish(Fiber* fiber, const void* counter) {
  Clocks& c = clocks();
  OtherBlocks& there = c.published[counter];
  raise(&there, c.observed[fiber->linear]);
  raise(&there[this_block().serial], c.of[fiber->linear]);
  c.of[fiber->linear][fiber->linear]++;
}

void race_observe(Fiber* fiber, const void* counter) {
  Clocks& c = clocks();
  auto found = c.published.find(counter);
  if (found != c.published.end()) raise(&c.observed[fiber->linear], found->second);
}

void race_release(Fiber* fiber, RaceClock* object) {
  RaceClock& mine = clocks().of[fiber->linear];
  object->resize(mine.size(), 0);
  for (size_t t = 0; t < mine.size(); t++) (*object)[t] = mine[t] > (*object)[t] ? mine[t] : (*object)[t];
  mine[fiber->linear]++;
}

void race_acquire(Fiber* fiber, const RaceClock& object) {
  RaceClock& mine = clocks().of[fiber->linear];
  for (size_t t = 0; t < object.size(); t++) mine[t] = object[t] > mine[t] ? object[t] : mine[t];
}

void race_access(Fiber* fiber, const void* address, size_t bytes, bool writes, const void* place) {
  Block& block = this_block();
  if (block.failed) return;
  auto offset = static_cast<size_t>(static_cast<const char*>(address) - block.shared);
  bool in_shared = offset < kDynamicShared + kStaticShared + 2048;
  if (!in_shared && !is_device_memory(address)) return;
  Clocks& c = clocks();
  auto begin = reinterpret_cast<uint64_t>(address), end = begin + bytes;
  Access now{block.serial, fiber->linear, c.of[fiber->linear][fiber->linear], 0, writes, place};
  for (uint64_t word = begin / 8; word * 8 < end; word++) {
    unsigned int from = word * 8 < begin ? static_cast<unsigned int>(begin - word * 8) : 0;
    unsigned int to = word * 8 + 8 > end ? static_cast<unsigned int>(end - word * 8) : 8;
    now.bytes = static_cast<uint8_t>((0xffu >> (8 - (to - from))) << from);
    Word& known = in_shared ? c.shared[word - reinterpret_cast<uint64_t>(block.shared) / 8] : c.global_word(word);
    if (!touch(c, known, now, address, block, in_shared)) {
      block.failed = true;  // noticed by the scheduler when this thread next waits or ends
      return;
    }
  }
}

}  // namespace quantune::cuda::emulation

// ---- what the compiler calls -----------------------------------------------------------------------------------------------
using namespace quantune::cuda::emulation;

static inline void accessed(const void* address, size_t bytes, bool writes, const void* place) {
  if (current) race_access(static_cast<Fiber*>(current), address, bytes, writes, place);
}

#define QT_HOOK extern "C" __attribute__((visibility("hidden")))
#define QT_ACCESS(name, bytes, writes) \
  QT_HOOK void name(void* address) { accessed(address, bytes, writes, __builtin_return_address(0)); }
QT_ACCESS(__tsan_read1, 1, false)
QT_ACCESS(__tsan_read2, 2, false)
QT_ACCESS(__tsan_read4, 4, false)
QT_ACCESS(__tsan_read8, 8, false)
QT_ACCESS(__tsan_read16, 16, false)
QT_ACCESS(__tsan_write1, 1, true)
QT_ACCESS(__tsan_write2, 2, true)
QT_ACCESS(__tsan_write4, 4, true)
QT_ACCESS(__tsan_write8, 8, true)
QT_ACCESS(__tsan_write16, 16, true)
QT_ACCESS(__tsan_unaligned_read2, 2, false)
QT_ACCESS(__tsan_unaligned_read4, 4, false)
QT_ACCESS(__tsan_unaligned_read8, 8, false)
QT_ACCESS(__tsan_unaligned_read16, 16, false)
QT_ACCESS(__tsan_unaligned_write2, 2, true)
QT_ACCESS(__tsan_unaligned_write4, 4, true)
QT_ACCESS(__tsan_unaligned_write8, 8, true)
QT_ACCESS(__tsan_unaligned_write16, 16, true)
QT_ACCESS(__tsan_volatile_read4, 4, false)
QT_ACCESS(__tsan_volatile_write4, 4, true)
#undef QT_ACCESS

QT_HOOK void __tsan_read_range(void* address, long bytes) {
  accessed(address, static_cast<size_t>(bytes), false, __builtin_return_address(0));
}
QT_HOOK void __tsan_write_range(void* address, long bytes) {
  accessed(address, static_cast<size_t>(bytes), true, __builtin_return_address(0));
}
QT_HOOK void __tsan_init() {}
QT_HOOK void __tsan_func_entry(void*) {}
QT_HOOK void __tsan_func_exit() {}
QT_HOOK void __tsan_vptr_update(void**, void*) {}
QT_HOOK void __tsan_vptr_read(void**) {}
// Guards of function statics and shared pointers on the host side.
#define QT_ATOMIC_HOOKS(bits, T)                                                                                            \
  QT_HOOK T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  QT_HOOK void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  QT_HOOK T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  QT_HOOK T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  QT_HOOK T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  QT_HOOK int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* e, T d, int, int) {                           \
    return __atomic_compare_exchange_n(p, e, d, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                 \
  }
QT_ATOMIC_HOOKS(8, unsigned char)
QT_ATOMIC_HOOKS(32, unsigned int)
QT_ATOMIC_HOOKS(64, unsigned long)
#undef QT_ATOMIC_HOOKS
