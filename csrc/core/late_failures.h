// Failures that are found when the device has run an operation, not when it was queued (a token id out of range on a GPU): the
// operations since then are remembered, so that exactly what was computed from the failed one's outputs counts as poisoned,
// as if it had failed at once.
#pragma once
#include <atomic>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "storage.h"

namespace quantune {

class LateFailures {
 public:
  using Poisoned = std::unordered_map<uint64_t, FailurePtr>;  // by Storage::id

  // ---- the queue's thread, in the queue's order ----
  void enable() { enabled_ = true; }
  bool enabled() const { return enabled_; }
  // An operation that the backend has been given (each counts, whether it is remembered or not).
  void launched(const Call& call, bool remember);
  void replayed(const Program& program);
  void overwritten(const Storage* storage);
  // A copy to the host. Returns where in the log it stands, for finished().
  uint64_t reading(int32_t request, const Storage* storage);
  uint64_t position();
  // What has been poisoned since the last call; empty most of the time.
  bool news() const { return news_.load(std::memory_order_acquire); }
  Poisoned take();

  // ---- any thread ----
  void refused(int64_t operation, const char* message);
  // The copy at `position` and all before it have completed: why it must not count, or null. Forgets what was before it.
  FailurePtr finished(int32_t request, uint64_t position);

 private:
  struct Touched {
    uint64_t storage;
    bool read, written, heals;
  };
  struct Entry {
    int64_t operation;  // its number, -1: not an operation
    int32_t request;    // 0: not a read
    int32_t site;
    const char* name;
    std::vector<Touched> operands;
  };
  void append(Entry entry);
  void pass_on(const Entry& entry, Poisoned* poisoned);

  bool enabled_ = false;
  std::atomic<bool> news_{false};
  std::mutex mutex_;
  std::deque<Entry> log_;
  uint64_t first_ = 0;  // position of log_[0]
  int64_t operations_ = 0;
  Poisoned poisoned_;
  std::unordered_map<int32_t, FailurePtr> failed_reads_;
};

}  // namespace quantune
