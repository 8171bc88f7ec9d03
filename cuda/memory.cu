// Scratch memory, tables for kernels, and copies between host and device.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "plugin.h"

namespace quantune::cuda {

cudaError_t CudaStream::allocate(void** data, int64_t bytes) {
  const cudaError_t error = try_allocate(data, bytes);
  return error != cudaSuccess && weights.give_up() ? try_allocate(data, bytes) : error;
}

cudaError_t CudaStream::try_allocate(void** data, int64_t bytes) {
  *data = nullptr;
  cudaError_t error = pool ? cudaMallocFromPoolAsync(data, static_cast<size_t>(bytes), pool, current())
                           : cudaMalloc(data, static_cast<size_t>(bytes));
  if (error != cudaSuccess) {
    *data = nullptr;
    cudaGetLastError();  // an allocation that fails leaves nothing behind
  }
  return error;
}

// In order: kernels queued before may still use the memory.
void CudaStream::release(void* data) {
  if (pool)
    cudaFreeAsync(data, current());
  else
    cudaFree(data);
}

int64_t CudaStream::free_bytes() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  uint64_t reserved = 0, used = 0;
  if (pool) {
    cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved);
    cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used);
  }
  return static_cast<int64_t>(free + reserved - used);
}

// ---- copies of weights -----------------------------------------------------------------------------------------------------

void WeightCopies::open(int64_t total_bytes) {
  const char* wanted = std::getenv("QUANTUNE_WEIGHT_COPIES");
  if (!wanted) return;
  const bool automatic = std::strcmp(wanted, "auto") == 0;
  const double gib = automatic ? 0 : std::strtod(wanted, nullptr);
  most_ = automatic ? total_bytes : gib > 0 ? static_cast<int64_t>(std::min(gib, 1e6) * (1 << 30)) : 0;
  keep_free_ = automatic ? total_bytes / 4 : 0;
}

void* WeightCopies::find(const void* weight, int64_t bytes, bool* fresh) {
  *fresh = false;
  if (most_ == 0 || owner_->capturing) return nullptr;
  auto found = copies_.find(weight);
  if (found != copies_.end() && found->second.bytes == bytes) {
    found->second.used_at = owner_->ordinal;
    return found->second.data;
  }
  if (found != copies_.end()) release(found);
  if (overwritten_by_programs_.count(weight)) return nullptr;
  void* data = nullptr;
  const bool fits = held_ + bytes <= most_ && (keep_free_ == 0 || owner_->free_bytes() - bytes >= keep_free_);
  if (!fits || owner_->try_allocate(&data, bytes) != cudaSuccess) {
    most_ = held_;  // asking again at every product would cost more than it gives
    return nullptr;
  }
  copies_[weight] = {data, bytes, owner_->ordinal};
  held_ += bytes;
  *fresh = true;
  return data;
}

void WeightCopies::release(std::unordered_map<const void*, Copy>::iterator at) {
  owner_->release(at->second.data);
  held_ -= at->second.bytes;
  copies_.erase(at);
}

void WeightCopies::changes(const void* weight) {
  if (most_ == 0) return;
  auto found = copies_.find(weight);
  if (found != copies_.end()) release(found);
  if (owner_->capturing) overwritten_by_programs_.insert(weight);
}

void WeightCopies::freed(const void* memory) {
  if (most_ == 0) return;
  changes(memory);
  overwritten_by_programs_.erase(memory);
}

bool WeightCopies::give_up() {
  if (copies_.empty()) return false;
  const int64_t before = held_;
  for (auto at = copies_.begin(); at != copies_.end();) {
    auto next = std::next(at);
    if (at->second.used_at != owner_->ordinal) release(at);
    at = next;
  }
  most_ = held_;
  return held_ < before;
}

void WeightCopies::close() {
  while (!copies_.empty()) release(copies_.begin());
}

// ---- scratch ---------------------------------------------------------------------------------------------------------------

void* Arena::take(int64_t bytes) {
  constexpr int64_t kAlignment = 256, kLeast = 1 << 20;
  bytes = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  for (Block& block : blocks_) {
    if (block.bytes - block.used < bytes) continue;
    void* data = block.data + block.used;
    block.used += bytes;
    return data;
  }
  void* data;
  int64_t size = std::max(bytes, kLeast);
  if (owner_->allocate(&data, size) != cudaSuccess && (size == bytes || owner_->allocate(&data, size = bytes) != cudaSuccess)) {
    return nullptr;
  }
  blocks_.push_back({static_cast<char*>(data), size, bytes});
  return data;
}

void Arena::reset() {
  if (consolidates_ && blocks_.size() > 1) {
    int64_t total = 0;
    for (const Block& block : blocks_) total += block.bytes;
    release();
    void* data;
    if (owner_->allocate(&data, total) == cudaSuccess) blocks_.push_back({static_cast<char*>(data), total, 0});
  }
  for (Block& block : blocks_) block.used = 0;
}

void Arena::release() {
  for (const Block& block : blocks_) owner_->release(block.data);
  blocks_.clear();
}

// ---- the ring --------------------------------------------------------------------------------------------------------------

bool PinnedRing::open() {
  void* data = nullptr;
  if (cudaHostAlloc(&data, kBytes, cudaHostAllocPortable) != cudaSuccess) return false;
  base_ = static_cast<char*>(data);
  return true;
}

void PinnedRing::close() {
  if (base_) cudaFreeHost(base_);
  base_ = nullptr;
}

char* PinnedRing::take(int64_t bytes, int64_t* end) {
  bytes = (bytes + 63) / 64 * 64;
  std::unique_lock<std::mutex> lock(mutex_);
  if (head_ % kBytes + bytes > kBytes) head_ += kBytes - head_ % kBytes;  // a piece does not wrap around
  released_.wait(lock, [&] { return head_ + bytes - tail_ <= kBytes; });
  char* piece = base_ + head_ % kBytes;
  head_ += bytes;
  *end = head_;
  return piece;
}

void PinnedRing::release(int64_t end) {
  std::lock_guard<std::mutex> lock(mutex_);
  tail_ = end;
  released_.notify_all();
}

// ---- copies ----------------------------------------------------------------------------------------------------------------

qt_status CudaStream::upload(void* to, const void* from, int64_t bytes, qt_done done, void* context) {
  for (int64_t at = 0; at < bytes; at += PinnedRing::kChunk) {
    int64_t count = std::min(bytes - at, PinnedRing::kChunk);
    Pending pending{};
    char* piece = ring.take(count, &pending.ring_end);
    std::memcpy(piece, static_cast<const char*>(from) + at, static_cast<size_t>(count));
    cudaError_t error =
        cudaMemcpyAsync(static_cast<char*>(to) + at, piece, static_cast<size_t>(count), cudaMemcpyHostToDevice, current());
    if (error != cudaSuccess) return check(error, "a copy to the device could not be started");
    if (at + count == bytes) {
      pending.done = done;
      pending.context = context;
    }
    qt_status status = complete_later(pending);
    if (status != QT_OK) return status;
  }
  if (bytes > 0) return QT_OK;
  Pending pending{};
  pending.done = done;
  pending.context = context;
  return complete_later(pending);
}

qt_status CudaStream::download(void* to, const void* from, int64_t bytes, qt_done done, void* context) {
  for (int64_t at = 0; at < bytes; at += PinnedRing::kChunk) {
    int64_t count = std::min(bytes - at, PinnedRing::kChunk);
    Pending pending{};
    char* piece = ring.take(count, &pending.ring_end);
    cudaError_t error = cudaMemcpyAsync(piece, static_cast<const char*>(from) + at, static_cast<size_t>(count),
                                        cudaMemcpyDeviceToHost, current());
    if (error != cudaSuccess) return check(error, "a copy from the device could not be started");
    pending.copy_to = static_cast<char*>(to) + at;
    pending.copy_from = piece;
    pending.bytes = count;
    if (at + count == bytes) {
      pending.done = done;
      pending.context = context;
    }
    qt_status status = complete_later(pending);
    if (status != QT_OK) return status;
  }
  if (bytes > 0) return QT_OK;
  Pending pending{};
  pending.done = done;
  pending.context = context;
  return complete_later(pending);
}

}  // namespace quantune::cuda

using quantune::cuda::CudaStream;
using quantune::cuda::Pending;
using quantune::cuda::PinnedRing;

// A recorded operation uses memory of its program: what it was recorded with must stay its own.
void* qt_stream::scratch(int64_t bytes) {
  auto* self = static_cast<CudaStream*>(this);
  return self->capturing ? self->capturing->scratch.take(bytes) : self->arena->take(bytes);
}

qt_status qt_stream::out_of_scratch() {
  return fail(QT_OUT_OF_MEMORY, "not enough memory for what the operation needs while it runs: %lld bytes are free",
              static_cast<long long>(static_cast<CudaStream*>(this)->free_bytes()));
}

void* qt_stream::weight_copy(const void* weight, int64_t bytes, bool* fresh) {
  return static_cast<CudaStream*>(this)->weights.find(weight, bytes, fresh);
}

void qt_stream::weight_changes(const void* weight) { static_cast<CudaStream*>(this)->weights.changes(weight); }

const void* qt_stream::stage_bytes(const void* host_data, int64_t bytes) {
  auto* self = static_cast<CudaStream*>(this);
  void* data = self->capturing ? self->capturing->constants.take(bytes) : self->arena->take(bytes);
  if (!data) return nullptr;
  return self->upload(data, host_data, bytes, nullptr, nullptr) == QT_OK ? data : nullptr;
}

qt_status qt_stream::check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return QT_OK;
  auto* self = static_cast<CudaStream*>(this);
  cudaGetLastError();
  if (quantune::cuda::is_sticky(error)) {
    int none = cudaSuccess;
    self->lost.compare_exchange_strong(none, error);
    return fail(QT_DEVICE_ERROR, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
  }
  if (error == cudaErrorMemoryAllocation) {
    return fail(QT_OUT_OF_MEMORY, "%s: not enough device memory, %lld bytes are free", what,
                static_cast<long long>(self->free_bytes()));
  }
  return fail(QT_INTERNAL, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}
