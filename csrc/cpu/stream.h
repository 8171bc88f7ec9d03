// What CPU kernels get: the thread pool, scratch memory and a way to say why they failed.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../core/abi.h"

namespace quantune {

class ThreadPool;

}  // namespace quantune

struct qt_stream {
  const qt_host* host;

  // Runs body(task) for each task in [0, tasks) on the pool and returns when all are done. Which tasks there are depends on
  // the shapes alone, never on the number of threads, and each writes its own outputs: so results repeat bit for bit.
  template <class Body>
  void parallel_for(int64_t tasks, const Body& body) {
    run_tasks(
        tasks, [](const void* context, int64_t task, int) { (*static_cast<const Body*>(context))(task); }, &body);
  }
  // The same, body(task, worker) with worker in [0, workers()): for scratch memory that a thread keeps.
  template <class Body>
  void parallel_for_worker(int64_t tasks, const Body& body) {
    run_tasks(
        tasks, [](const void* context, int64_t task, int worker) { (*static_cast<const Body*>(context))(task, worker); },
        &body);
  }
  int workers() const;

  // Scratch memory, 64-byte aligned, valid until the operation returns; freed all at once then. Null when out of memory.
  void* scratch(int64_t bytes);
  template <class T>
  T* scratch_of(int64_t count) {
    return static_cast<T*>(scratch(count * static_cast<int64_t>(sizeof(T))));
  }

  // True when the operation should give up early (the environment is being torn down).
  bool stopping() const;

  void run_tasks(int64_t tasks, void (*body)(const void* context, int64_t task, int worker), const void* context);
  void reset_scratch();

  quantune::ThreadPool* pool;
  struct ScratchArena;
  ScratchArena* arena;
};
