// The CPU's stream: the thread pool and the memory that kernels use while they run.
#include "stream.h"

#include "../core/os.h"
#include "../core/thread_pool.h"
#include "arena.h"

void qt_stream::run_tasks(int64_t tasks, void (*body)(const void*, int64_t, int), const void* context) {
  arena->hold(pool);
  pool->run(tasks, body, context);
}

int qt_stream::workers() const {
  arena->hold(pool);
  return pool->workers();
}

bool qt_stream::stopping() const { return *static_cast<const volatile int32_t*>(host->stop) != 0; }
void* qt_stream::scratch(int64_t bytes) { return arena->take(bytes); }
void qt_stream::reset_scratch() { arena->reset(); }

void* qt_stream::ScratchArena::take(int64_t bytes) {
  bytes = (bytes < 1 ? 1 : bytes + 63) / 64 * 64 + 64;
  if (used_ + bytes <= size_) {
    void* result = block_ + used_;
    used_ += bytes;
    return result;
  }
  // The block is full: what follows gets blocks of its own until the operation ends, then one block holds all.
  void* extra = quantune::os::allocate(bytes);
  if (!extra) return nullptr;
  extras_.push_back({extra, bytes});
  extra_bytes_ += bytes;
  return extra;
}

void qt_stream::ScratchArena::hold(quantune::ThreadPool* pool) {
  if (held_) return;
  held_ = pool;
  pool->hold();
}

void qt_stream::ScratchArena::reset() {
  if (held_) held_->let_go();
  held_ = nullptr;
  if (!extras_.empty()) {
    for (const Extra& extra : extras_) quantune::os::release(extra.data, extra.bytes);
    int64_t wanted = used_ + extra_bytes_;
    extras_.clear();
    extra_bytes_ = 0;
    if (wanted <= kKeptBytes && wanted > size_) {
      if (block_) quantune::os::release(block_, size_);
      block_ = static_cast<uint8_t*>(quantune::os::allocate(wanted));
      size_ = block_ ? wanted : 0;
    }
  }
  used_ = 0;
}

qt_stream::ScratchArena::~ScratchArena() {
  reset();
  if (block_) quantune::os::release(block_, size_);
}
