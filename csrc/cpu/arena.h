#pragma once
#include <vector>

#include "stream.h"

// What an operation holds until it returns: scratch memory, and the size of the thread pool.
struct qt_stream::ScratchArena {
 public:
  ~ScratchArena();
  void* take(int64_t bytes);
  void hold(quantune::ThreadPool* pool);
  void reset();

 private:
  static constexpr int64_t kKeptBytes = 32 << 20;  // what is kept from one operation to the next at most
  struct Extra {
    void* data;
    int64_t bytes;
  };
  uint8_t* block_ = nullptr;
  int64_t size_ = 0, used_ = 0, extra_bytes_ = 0;
  std::vector<Extra> extras_;
  quantune::ThreadPool* held_ = nullptr;
};
