// Weights, and what else stays, of a few pages up to a few megabytes lie side by side in large regions, which the system backs
// with huge pages. Each for itself would lie on small ones, and a decode step, which reads each once, would spend a fifth of
// its time on looking up addresses.
#pragma once
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>

#include "abi.h"

#if defined(__SANITIZE_ADDRESS__)  // GCC's name for it
#define QT_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#define QT_ADDRESS_SANITIZER __has_feature(address_sanitizer)
#else
#define QT_ADDRESS_SANITIZER 0
#endif

namespace quantune {

class Slabs {
 public:
  Slabs(const qt_backend* backend, qt_stream* stream) : backend_(backend), stream_(stream) {}

  // Whether a block of so many bytes belongs here. The memory of other devices has no pages that matter, and the address
  // sanitizer should know each block.
  bool serves(int64_t bytes) const {
    return kInUse && bytes >= kSmallest && bytes < kLargest && std::strcmp(backend_->name, "cpu") == 0;
  }

  // 64-byte aligned; null when the backend gives no more memory.
  void* take(int64_t bytes) {
    bytes = rounded(bytes);
    for (auto& slab : slabs_) {
      if (void* data = cut(&slab.second, bytes)) return data;
    }
    char* base = static_cast<char*>(backend_->allocate(stream_, kSlab));
    if (!base) return nullptr;
    Ranges& free = slabs_[base];
    free[base] = kSlab;
    return cut(&free, bytes);
  }

  // False: the block is none of these.
  bool give_back(void* data, int64_t bytes) {
    char* at = static_cast<char*>(data);
    auto owner = slabs_.upper_bound(at);
    if (owner == slabs_.begin() || at >= (--owner)->first + kSlab) return false;
    Ranges& free = owner->second;
    auto range = free.emplace(at, rounded(bytes)).first;
    auto next = std::next(range);
    if (next != free.end() && range->first + range->second == next->first) {
      range->second += next->second;
      free.erase(next);
    }
    if (range != free.begin()) {
      auto before = std::prev(range);
      if (before->first + before->second == range->first) {
        before->second += range->second;
        free.erase(range);
        range = before;
      }
    }
    if (range->second == kSlab) {
      backend_->release(stream_, owner->first);
      slabs_.erase(owner);
    }
    return true;
  }

 private:
  static constexpr bool kInUse = !QT_ADDRESS_SANITIZER;
  static constexpr int64_t kSlab = 32 << 20, kSmallest = 16 << 10, kLargest = 4 << 20;
  using Ranges = std::map<char*, int64_t>;  // free bytes by their start; neighbours are joined

  static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  // The first that fits, from the lowest address on: so that the last regions become empty.
  static void* cut(Ranges* free, int64_t bytes) {
    for (auto range = free->begin(); range != free->end(); ++range) {
      if (range->second < bytes) continue;
      char* data = range->first;
      const int64_t rest = range->second - bytes;
      auto next = free->erase(range);
      if (rest > 0) free->emplace_hint(next, data + bytes, rest);
      return data;
    }
    return nullptr;
  }

  const qt_backend* backend_;
  qt_stream* stream_;
  std::map<char*, Ranges> slabs_;  // by their start
};

}  // namespace quantune
