// A device's caching allocator. Used by the queue's thread alone; the counters may be read from any thread.
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <vector>

#include "abi.h"
#include "slabs.h"

namespace quantune {

enum Purpose : int32_t { kWeights, kAdapters, kGradients, kOptimizer, kActivations, kCache, kOther, kPurposes };
const char* purpose_name(int32_t purpose);

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Bytes in use by purpose, now and at most, and what the cache holds beyond them.
struct MemoryCounters {
  std::atomic<int64_t> current[kPurposes];
  std::atomic<int64_t> peak[kPurposes];
  std::atomic<int64_t> total{0}, peak_total{0}, cached{0};

  MemoryCounters();
  void add(int32_t purpose, int64_t bytes);
  void reset_peak();
};

// Freed blocks wait in size classes (at most an eighth is wasted) for the next request. What is in use and what waits together
// stay near the largest use so far: before the system is asked for more, blocks that would exceed it go back, so that a step
// of another shape does not add its memory to that of the step before.
class Allocator {
 public:
  Allocator(const qt_backend* backend, qt_stream* stream, MemoryCounters* counters)
      : backend_(backend), stream_(stream), counters_(counters), slabs_(backend, stream) {}
  ~Allocator() { trim(); }

  Block allocate(int64_t bytes, int32_t purpose);
  void release(Block block);
  // Returns all waiting blocks to the system, and forgets the largest use so far.
  void trim();
  int64_t cached() const { return cached_; }

 private:
  static int64_t size_class(int64_t bytes);
  Block take_cached(int64_t wanted);
  Block take_from_slab(int64_t bytes);
  Block take_from_classes(int64_t wanted);
  void make_room(int64_t wanted);
  void evict_down_to(int64_t cached_bytes);

  const qt_backend* backend_;
  qt_stream* stream_;
  MemoryCounters* counters_;
  Slabs slabs_;
  std::map<int64_t, std::vector<void*>> free_;
  int64_t in_use_ = 0, cached_ = 0, largest_use_ = 0;
};

}  // namespace quantune
