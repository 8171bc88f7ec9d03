#include "allocator.h"

#include <iterator>

namespace quantune {
namespace {

constexpr int64_t kSlack = 32 << 20;
constexpr int64_t kLarge = 1 << 20;

void raise(std::atomic<int64_t>* peak, int64_t value) {
  if (value > peak->load(std::memory_order_relaxed)) peak->store(value, std::memory_order_relaxed);
}

}  // namespace

const char* purpose_name(int32_t purpose) {
  static const char* const names[kPurposes] = {"weights",     "adapters", "gradients", "optimizer",
                                               "activations", "cache",    "other"};
  return names[purpose];
}

MemoryCounters::MemoryCounters() {
  for (int i = 0; i < kPurposes; i++) {
    current[i].store(0);
    peak[i].store(0);
  }
}

void MemoryCounters::add(int32_t purpose, int64_t bytes) {
  raise(&peak[purpose], current[purpose].fetch_add(bytes, std::memory_order_relaxed) + bytes);
  raise(&peak_total, total.fetch_add(bytes, std::memory_order_relaxed) + bytes);
}

void MemoryCounters::reset_peak() {
  for (int i = 0; i < kPurposes; i++) peak[i].store(current[i].load());
  peak_total.store(total.load());
}

// Steps of an eighth of the power of two below; large blocks in whole pages.
int64_t Allocator::size_class(int64_t bytes) {
  if (bytes <= 256) return bytes <= 64 ? 64 : (bytes + 63) / 64 * 64;
  int64_t power = 256;
  while (power * 2 <= bytes) power *= 2;
  int64_t step = power / 8 < 64 ? 64 : power / 8;
  return (bytes + step - 1) / step * step;
}

Block Allocator::take_cached(int64_t wanted) {
  auto found = free_.lower_bound(wanted);
  // A large request may take a block that is a quarter too large rather than ask for new pages.
  if (found == free_.end() || found->first > (wanted < kLarge ? wanted : wanted + wanted / 4)) return {};
  Block block{found->second.back(), found->first};
  found->second.pop_back();
  if (found->second.empty()) free_.erase(found);
  cached_ -= block.bytes;
  return block;
}

void Allocator::evict_down_to(int64_t cached_bytes) {
  while (cached_ > cached_bytes && !free_.empty()) {
    auto largest = std::prev(free_.end());
    backend_->release(stream_, largest->second.back());
    cached_ -= largest->first;
    largest->second.pop_back();
    if (largest->second.empty()) free_.erase(largest);
  }
}

Block Allocator::allocate(int64_t bytes, int32_t purpose) {
  const bool stays = purpose == kWeights || purpose == kAdapters || purpose == kCache;
  Block block = stays && slabs_.serves(bytes) ? take_from_slab(bytes) : Block{};
  if (!block.data) block = take_from_classes(size_class(bytes));
  if (!block.data) return {};
  in_use_ += block.bytes;
  if (in_use_ > largest_use_) largest_use_ = in_use_;
  counters_->cached.store(cached_, std::memory_order_relaxed);
  return block;
}

Block Allocator::take_from_slab(int64_t bytes) {
  make_room(bytes);
  return {slabs_.take(bytes), bytes};
}

Block Allocator::take_from_classes(int64_t wanted) {
  Block block = take_cached(wanted);
  if (block.data) return block;
  make_room(wanted);
  block = {backend_->allocate(stream_, wanted), wanted};
  if (!block.data && cached_ > 0) {
    evict_down_to(0);
    block.data = backend_->allocate(stream_, wanted);
  }
  return block;
}

// For so many bytes more, what waits goes back to the system where both together would exceed the largest use.
void Allocator::make_room(int64_t wanted) {
  int64_t most = (largest_use_ > in_use_ + wanted ? largest_use_ : in_use_ + wanted) + kSlack;
  evict_down_to(most > in_use_ + wanted ? most - in_use_ - wanted : 0);
}

void Allocator::release(Block block) {
  if (!block.data) return;
  in_use_ -= block.bytes;
  if (slabs_.give_back(block.data, block.bytes)) return;
  cached_ += block.bytes;
  free_[block.bytes].push_back(block.data);
  counters_->cached.store(cached_, std::memory_order_relaxed);
}

void Allocator::trim() {
  evict_down_to(0);
  largest_use_ = in_use_;
  counters_->cached.store(cached_, std::memory_order_relaxed);
}

}  // namespace quantune
