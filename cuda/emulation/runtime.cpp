// The emulated CUDA runtime: see runtime.h. Graph and GraphExec are one type; instantiating copies.
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"
#include "engine.h"
#include "launch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace quantune::cuda::emulation {

namespace {

std::atomic<int> sticky{cudaSuccess};
thread_local int last = cudaSuccess, device = 0;

cudaError_t result(cudaError_t error) {
  int lost = sticky.load();
  if (lost != cudaSuccess) error = static_cast<cudaError_t>(lost);
  if (error != cudaSuccess) last = error;
  return error;
}

}  // namespace

struct Graph {
  std::vector<std::function<void()>> work;
};

// Counts how often it was recorded and how often passed. May be destroyed while a stream still has to pass it.
struct EventState {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, passed = 0;
};
struct Event {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
};

struct Stream {
  std::mutex mutex;
  std::condition_variable changed, idle;
  std::deque<std::function<void()>> queue;
  bool closing = false, busy = false;
  Graph* capture = nullptr;
  std::thread thread{[this] { run(); }};

  void submit(std::function<void()> work) {
    if (capture) return capture->work.push_back(std::move(work));
    std::lock_guard<std::mutex> lock(mutex);
    queue.push_back(std::move(work));
    changed.notify_one();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    idle.wait(lock, [this] { return queue.empty() && !busy; });
  }
  void run() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return closing || !queue.empty(); });
      if (queue.empty()) return;
      auto work = std::move(queue.front());
      queue.pop_front();
      busy = true;
      lock.unlock();
      if (options().late_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(options().late_us));
      work();
      lock.lock();
      busy = false;
      if (queue.empty()) idle.notify_all();
    }
  }
};

// Device memory: one reserved range per process (so that one comparison tells device addresses from others), blocks with red
// zones, filled with NaN. Every device has its own share of bytes.
namespace {

constexpr size_t kReserved = size_t{1} << 38;
constexpr size_t kZone = 256;
constexpr size_t kPoisoned = 64 << 20;

struct Heap {
  std::mutex mutex;
  char* base = nullptr;
  std::map<size_t, size_t> free;  // offset -> bytes
  struct Used {
    size_t bytes, asked;
    int device;
  };
  std::map<size_t, Used> used;
  std::map<int, size_t> in_use;

  Heap() {
    void* range = mmap(nullptr, kReserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) std::abort();
    base = static_cast<char*>(range);
    free[0] = kReserved;
  }

  void* take(size_t asked) {
    std::lock_guard<std::mutex> lock(mutex);
    size_t bytes = (asked + 255) / 256 * 256 + 2 * kZone;
    if (in_use[device] + asked > static_cast<size_t>(options().memory_mib) << 20) return nullptr;
    for (auto it = free.begin(); it != free.end(); ++it) {
      if (it->second < bytes) continue;
      size_t at = it->first, rest = it->second - bytes;
      free.erase(it);
      if (rest) free[at + bytes] = rest;
      used[at] = {bytes, asked, device};
      in_use[device] += asked;
      char* data = base + at + kZone;
#if defined(__SANITIZE_ADDRESS__)
      __asan_unpoison_memory_region(base + at, bytes);
#endif
      // NaN; of what is very large the beginning and the end, so that it need not be there.
      std::memset(base + at, 0xff, std::min(bytes, kPoisoned));
      std::memset(base + at + bytes - std::min(bytes, kPoisoned), 0xff, std::min(bytes, kPoisoned));
#if defined(__SANITIZE_ADDRESS__)
      __asan_poison_memory_region(base + at, kZone);
      __asan_poison_memory_region(data + asked, bytes - kZone - asked);
#endif
      return data;
    }
    return nullptr;
  }

  bool give(void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    size_t at = static_cast<size_t>(static_cast<char*>(data) - base) - kZone;
    auto it = used.find(at);
    if (it == used.end()) return false;
    Used block = it->second;
    used.erase(it);
    in_use[block.device] -= block.asked;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(base + at, block.bytes);
#endif
    bool intact = true;
    for (size_t i = 0; i < kZone; i++) intact &= static_cast<unsigned char>(base[at + i]) == 0xff;
    for (size_t i = kZone + block.asked; i < block.bytes; i++) intact &= static_cast<unsigned char>(base[at + i]) == 0xff;
    if (!intact) {
      report_error("a kernel or a copy wrote outside of a block of device memory");
      sticky.store(cudaErrorIllegalAddress);
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(base + at, block.bytes);
#else
    // Whoever still reads it shall see NaN.
    std::memset(base + at, 0xff, std::min(block.bytes, kPoisoned));
#endif
    if (block.bytes > (1 << 20)) madvise_away(at, block.bytes);
    auto next = free.lower_bound(at);
    if (next != free.end() && next->first == at + block.bytes) {
      block.bytes += next->second;
      next = free.erase(next);
    }
    if (next != free.begin() && std::prev(next)->first + std::prev(next)->second == at) {
      std::prev(next)->second += block.bytes;
    } else {
      free[at] = block.bytes;
    }
    return true;
  }

  void madvise_away(size_t at, size_t bytes) {
    size_t begin = (at + 4095) / 4096 * 4096, end = (at + bytes) / 4096 * 4096;
    if (end > begin) madvise(base + begin, end - begin, MADV_DONTNEED);
  }
};

Heap& heap() {
  static Heap* instance = new Heap;  // other threads may outlive static destructors
  return *instance;
}

}  // namespace

// For the race check: is this device memory?
bool is_device_memory(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - heap().base) < kReserved;
}

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> body) {
  uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  size_t limit = options().compute >= 90 ? 227 * 1024 : options().compute == 80 ? 163 * 1024 : 99 * 1024;
  bool valid = threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
               grid.z <= 65535 && shared_bytes <= limit;
  if (!valid) return result(cudaErrorInvalidValue);
  if (sticky.load() != cudaSuccess) return result(cudaSuccess);
  stream->submit([=, body = std::move(body)] {
    if (sticky.load() == cudaSuccess && !run_grid(grid, block, shared_bytes, body)) sticky.store(cudaErrorLaunchFailure);
  });
  return cudaSuccess;
}

// For tests that plant mistakes.
void forget_errors() {
  sticky.store(cudaSuccess);
  last = cudaSuccess;
}

}  // namespace quantune::cuda::emulation

using namespace quantune::cuda::emulation;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaPeekAtLastError() { return static_cast<cudaError_t>(last); }
cudaError_t cudaGetLastError() {
  auto error = static_cast<cudaError_t>(last);
  last = sticky.load();
  return error;
}

// QUANTUNE_EMULATED_DRIVER plays a machine without a driver, with an old one, without a device.
static cudaError_t driver_state() {
  const char* state = std::getenv("QUANTUNE_EMULATED_DRIVER");
  if (!state) return cudaSuccess;
  if (std::strcmp(state, "works") == 0) return cudaSuccess;
  if (std::strcmp(state, "crash") == 0) std::abort();
  if (std::strcmp(state, "missing") == 0 || std::strcmp(state, "old") == 0) return cudaErrorInsufficientDriver;
  if (std::strcmp(state, "mismatch") == 0) return cudaErrorSystemDriverMismatch;
  return cudaErrorNoDevice;
}
cudaError_t cudaDriverGetVersion(int* version) {
  const char* state = std::getenv("QUANTUNE_EMULATED_DRIVER");
  *version = !state ? 13000 : std::strcmp(state, "old") == 0 ? 11040 : std::strcmp(state, "missing") == 0 ? 0 : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (cudaError_t error = driver_state()) return result(error);
  *count = options().devices;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int index) {
  if (index < 0 || index >= options().devices) return result(cudaErrorInvalidDevice);
  std::memset(p, 0, sizeof *p);
  std::snprintf(p->name, sizeof p->name, "emulated device");
  p->major = options().compute / 10;
  p->minor = options().compute % 10;
  p->multiProcessorCount = 4;
  p->l2CacheSize = 4 << 20;
  p->totalGlobalMem = static_cast<size_t>(options().memory_mib) << 20;
  p->sharedMemPerBlockOptin = options().compute >= 90 ? 227 * 1024 : options().compute == 80 ? 163 * 1024 : 99 * 1024;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMemoryPoolsSupported     ? 1
           : attribute == cudaDevAttrComputeCapabilityMajor ? options().compute / 10
                                                            : options().compute % 10;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= options().devices) return result(cudaErrorInvalidDevice);
  device = index;
  return result(cudaSuccess);
}
cudaError_t cudaGetDevice(int* index) { return *index = device, cudaSuccess; }

cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = heap().take(bytes);
  return result(*data ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* data) { return result(!data || heap().give(data) ? cudaSuccess : cudaErrorInvalidValue); }
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = reinterpret_cast<cudaMemPool_t>(&device);
  return result(cudaSuccess);
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *static_cast<uint64_t*>(value) = 0;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaMallocFromPoolAsync(void** data, size_t bytes, cudaMemPool_t, cudaStream_t) { return cudaMalloc(data, bytes); }
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  if (cudaError_t error = result(cudaSuccess)) return error;
  stream->submit([data] {
    if (data) heap().give(data);
  });
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  std::lock_guard<std::mutex> lock(heap().mutex);
  *total = static_cast<size_t>(options().memory_mib) << 20;
  *free = *total - heap().in_use[device];
  return result(cudaSuccess);
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int) {
  *data = std::calloc(1, bytes);
  return result(*data ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** mapped, void* host, unsigned int) { return *mapped = host, cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = new Stream;
  return result(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    std::lock_guard<std::mutex> lock(stream->mutex);
    stream->closing = true;
    stream->changed.notify_all();
  }
  stream->thread.join();
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->capture) return result(cudaErrorStreamCaptureInvalidated);
  stream->wait();
  return result(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (cudaError_t error = result(cudaSuccess)) return error;
  stream->submit([=] {
    if (bytes) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (cudaError_t error = result(cudaSuccess)) return error;
  stream->submit([=] {
    if (bytes) std::memset(to, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  *event = new Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream->capture) return result(cudaErrorStreamCaptureInvalidated);
  uint64_t number;
  {
    std::lock_guard<std::mutex> lock(event->state->mutex);
    number = ++event->state->recorded;
  }
  stream->submit([state = event->state, number] {
    std::lock_guard<std::mutex> lock(state->mutex);
    if (state->passed < number) state->passed = number;
    state->changed.notify_all();
  });
  return result(cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  uint64_t number;
  {
    std::lock_guard<std::mutex> lock(event->state->mutex);
    number = event->state->recorded;
  }
  stream->submit([state = event->state, number] {
    std::unique_lock<std::mutex> lock(state->mutex);
    state->changed.wait(lock, [&] { return state->passed >= number; });
  });
  return result(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::lock_guard<std::mutex> lock(event->state->mutex);
  if (event->state->passed < event->state->recorded) return cudaErrorNotReady;
  return result(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  {
    std::unique_lock<std::mutex> lock(event->state->mutex);
    event->state->changed.wait(lock, [&] { return event->state->passed >= event->state->recorded; });
  }
  return result(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capture = new Graph;
  return result(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return result(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* program, cudaGraph_t graph, unsigned long long) {
  *program = new Graph(*graph);
  return result(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t program, cudaStream_t stream) {
  if (cudaError_t error = result(cudaSuccess)) return error;
  for (const auto& work : program->work) stream->submit(work);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t program) {
  delete program;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cudaGraphExecDestroy(graph); }
