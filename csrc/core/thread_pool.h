// The process's helper threads for CPU kernels, shared by all devices and Workers.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <vector>

namespace quantune {

// A job is a number of tasks, handed out by one atomic counter. Only one job runs at a time; a second caller (another Worker)
// finds the pool busy and runs its tasks alone, with the same results.
class ThreadPool {
 public:
  using Task = void (*)(const void* context, int64_t task, int worker);

  // Reference counted: the threads are joined when the last holder is gone.
  static std::shared_ptr<ThreadPool> acquire();
  // The number of threads, the caller's included; takes effect with the next job. 0: the default.
  static void set_threads(int threads);
  static int threads();

  explicit ThreadPool(int threads);
  ~ThreadPool();

  // While held, the number of workers stays what it is; an operation sizes its scratch memory by it.
  void hold() { size_.lock_shared(); }
  void let_go() { size_.unlock_shared(); }
  // Worker indices that a job sees are below it.
  int workers() const { return workers_; }
  void run(int64_t tasks, Task body, const void* context);
  // Called between operations: follows set_threads unless another stream holds the pool.
  void resize_if_asked();

 private:
  void start(int threads);
  void stop();
  void helper(int index);
  // Claims tasks of job `number` until none is left.
  void work(uint32_t number, int worker);

  std::mutex busy_;
  std::shared_mutex size_;
  int workers_ = 1;
  std::vector<std::thread> helpers_;

  // High half: the job's number; low half: tasks not yet claimed. One word, so that a late helper can never claim from a job
  // that it did not see begin.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<uint32_t> published_{0};  // the newest job's number; helpers sleep on it
  std::atomic<int> sleeping_{0};
  std::atomic<bool> quit_{false};
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<int64_t> tasks_{0};
  std::atomic<Task> body_{nullptr};
  std::atomic<const void*> context_{nullptr};
};

}  // namespace quantune
