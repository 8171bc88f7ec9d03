// The backend's own view of its stream: memory, transfers, completions, reports, recorded programs.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "stream.h"

namespace quantune::cuda {

struct CudaStream;

// Device memory for one operation at a time: taken piece by piece, given back all at once.
class Arena {
 public:
  // `consolidates`: what did not fit into one block gets one block the next time. Off where addresses must not change.
  Arena(CudaStream* owner, bool consolidates) : owner_(owner), consolidates_(consolidates) {}
  ~Arena() { release(); }
  void* take(int64_t bytes);
  void reset();
  void release();

 private:
  struct Block {
    char* data;
    int64_t bytes, used;
  };
  CudaStream* owner_;
  bool consolidates_;
  std::vector<Block> blocks_;
};

// Pinned host memory through which copies pass, given back in the order it was taken.
class PinnedRing {
 public:
  static constexpr int64_t kChunk = 4 << 20;
  static constexpr int64_t kBytes = 8 * kChunk;
  bool open();
  void close();
  // Waits for room; `end` is what release() wants when the piece is no longer in use.
  char* take(int64_t bytes, int64_t* end);
  void release(int64_t end);

 private:
  char* base_ = nullptr;
  int64_t head_ = 0, tail_ = 0;
  std::mutex mutex_;
  std::condition_variable released_;
};

// A captured program: its graph, the memory its operations use, and the reports its kernels may write.
struct Program {
  explicit Program(CudaStream* owner) : scratch(owner, false), constants(owner, false) {}
  cudaGraphExec_t executable = nullptr;
  Arena scratch, constants;
  std::vector<int> reports;
  std::deque<int64_t> in_flight;  // ordinals of its replays, guarded by Reports' mutex
};

// What kernels wrote with Report::raise, found when the stream has passed them, and told to the host in words.
class Reports {
 public:
  static constexpr int kSlots = 4096;
  bool open();
  void close();
  Report next(CudaStream* stream, const char* format);
  void replayed(Program* program, int64_t ordinal);
  void forget(Program* program);
  // Everything up to operation `ordinal` has run.
  void passed(CudaStream* stream, int64_t ordinal);

 private:
  struct Entry {
    const char* format = nullptr;
    int64_t ordinal = -1;
    bool busy = false;
  };
  void tell(CudaStream* stream, int slot, int64_t ordinal);

  std::mutex mutex_;
  ReportSlot* host_ = nullptr;
  ReportSlot* device_ = nullptr;
  std::vector<Entry> entries_;
  std::deque<int> in_flight_;
  std::vector<Program*> programs_;
  int at_ = 0;
};

// Copies of 4-bit weights in bfloat16, the values that products dequantize anyway, made when a product of many rows first wants
// one: products then read 2 bytes a weight instead of half of one, and nothing is dequantized again. 4 times the weights'
// memory, so only as far as QUANTUNE_WEIGHT_COPIES allows: so many GiB, or "auto": as long as a quarter of the device's memory
// stays free. When an allocation finds no memory the copies go, and none are made again. A recorded program has addresses fixed
// in it: it neither uses nor makes copies, and of a weight that one overwrites there is none any more.
class WeightCopies {
 public:
  explicit WeightCopies(CudaStream* owner) : owner_(owner) {}
  void open(int64_t total_bytes);
  void* find(const void* weight, int64_t bytes, bool* fresh);
  void changes(const void* weight);
  void freed(const void* memory);
  // Gives up all that the operation under way does not use; whether that freed memory.
  bool give_up();
  void close();

 private:
  struct Copy {
    void* data;
    int64_t bytes, used_at;  // used_at: which operation
  };
  void release(std::unordered_map<const void*, Copy>::iterator at);
  CudaStream* owner_;
  std::unordered_map<const void*, Copy> copies_;
  std::unordered_set<const void*> overwritten_by_programs_;
  int64_t most_ = 0, held_ = 0, keep_free_ = 0;
};

// Something to do when the stream has come so far.
struct Pending {
  cudaEvent_t event;
  int64_t ordinal;
  void* copy_to = nullptr;
  const void* copy_from = nullptr;
  int64_t bytes = 0;
  int64_t ring_end = -1;
  qt_done done = nullptr;
  void* context = nullptr;
};

struct CudaStream : qt_stream {
  ~CudaStream();
  int device = 0;
  cudaStream_t main = nullptr;
  cudaStream_t side = nullptr;  // copies and memory while `main` is being captured
  cudaMemPool_t pool = nullptr;
  cudaEvent_t crossing = nullptr;
  std::unique_ptr<Arena> arena;
  WeightCopies weights{this};
  PinnedRing ring;
  Reports reports;
  Program* capturing = nullptr;
  int64_t ordinal = 0;  // operations and replays so far
  std::atomic<int> lost{cudaSuccess};

  cudaStream_t current() const { return capturing ? side : main; }
  cudaError_t allocate(void** data, int64_t bytes);
  cudaError_t try_allocate(void** data, int64_t bytes);
  void release(void* data);
  int64_t free_bytes();
  qt_status upload(void* to, const void* from, int64_t bytes, qt_done done, void* context);
  qt_status download(void* to, const void* from, int64_t bytes, qt_done done, void* context);
  qt_status complete_later(Pending pending);

  // ---- completions.cu ----
  void start_completions();
  void stop_completions();
  void run_completions();
  cudaEvent_t take_event();

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Pending> pending;
  std::vector<cudaEvent_t> events;
  bool closing = false;
  std::thread completions;
};

// Why a device cannot be used, empty when it can.
std::string refuse_device(int index, cudaDeviceProp* properties);
// Errors after which the process cannot use the GPU any more.
bool is_sticky(cudaError_t error);

}  // namespace quantune::cuda
