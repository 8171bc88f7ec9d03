#include "thread_pool.h"

#include "os.h"

namespace quantune {
namespace {

constexpr int64_t kSpinNs = 60000;
constexpr int kMostThreads = 256;

// Never destroyed: helper threads may outlive static destructors when the process exits.
struct Shared {
  std::mutex mutex;
  std::weak_ptr<ThreadPool> pool;
  std::atomic<int> asked{0};
};
Shared& shared() {
  static Shared* instance = new Shared;
  return *instance;
}

}  // namespace

std::shared_ptr<ThreadPool> ThreadPool::acquire() {
  std::lock_guard<std::mutex> lock(shared().mutex);
  std::shared_ptr<ThreadPool> pool = shared().pool.lock();
  if (!pool) {
    pool = std::make_shared<ThreadPool>(threads());
    shared().pool = pool;
  }
  return pool;
}

void ThreadPool::set_threads(int threads) { shared().asked.store(threads > kMostThreads ? kMostThreads : threads); }

int ThreadPool::threads() {
  int asked = shared().asked.load();
  return asked > 0 ? asked : os::usable_cores();
}

ThreadPool::ThreadPool(int threads) { start(threads); }
ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::start(int threads) {
  quit_.store(false);
  workers_ = threads;
  for (int i = 1; i < threads; i++) helpers_.emplace_back([this, i] { helper(i); });
}

void ThreadPool::stop() {
  quit_.store(true);
  published_.fetch_add(1);
  os::wake_all(&published_);
  for (std::thread& thread : helpers_) thread.join();
  helpers_.clear();
}

void ThreadPool::resize_if_asked() {
  int asked = shared().asked.load(std::memory_order_relaxed);
  if (asked <= 0 || asked == workers_) return;
  if (!size_.try_lock()) return;
  stop();
  start(asked);
  size_.unlock();
}

void ThreadPool::run(int64_t tasks, Task body, const void* context) {
  constexpr int64_t kMostTasks = 0x7fffffff;
  if (tasks <= 1 || helpers_.empty() || tasks > kMostTasks || !busy_.try_lock()) {
    for (int64_t i = 0; i < tasks; i++) body(context, i, 0);
    return;
  }
  done_.store(0, std::memory_order_relaxed);
  tasks_.store(tasks, std::memory_order_relaxed);
  body_.store(body, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  uint32_t number = published_.load(std::memory_order_relaxed) + 1;
  state_.store(static_cast<uint64_t>(number) << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
  published_.store(number, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) os::wake_all(&published_);

  work(number, 0);
  while (done_.load(std::memory_order_acquire) != tasks) os::yield_thread();
  busy_.unlock();
}

void ThreadPool::work(uint32_t number, int worker) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(state >> 32) == number && static_cast<uint32_t>(state) > 0) {
    if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    // The job cannot end before this task is done, so its fields are this job's.
    int64_t task = tasks_.load(std::memory_order_relaxed) - static_cast<int64_t>(static_cast<uint32_t>(state));
    body_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), task, worker);
    done_.fetch_add(1, std::memory_order_acq_rel);
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::helper(int index) {
  os::name_thread("quantune-cpu");
  uint32_t seen = published_.load();
  if (static_cast<uint32_t>(state_.load() >> 32) == seen) work(seen, index);
  while (!quit_.load(std::memory_order_relaxed)) {
    int64_t spin_end = os::monotonic_ns() + kSpinNs;
    while (published_.load(std::memory_order_acquire) == seen) {
      if (os::monotonic_ns() < spin_end) {
        os::yield_thread();
        continue;
      }
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      if (published_.load(std::memory_order_seq_cst) == seen) os::wait_while_equal(&published_, seen, -1);
      sleeping_.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = published_.load(std::memory_order_acquire);
    work(seen, index);
  }
}

}  // namespace quantune
