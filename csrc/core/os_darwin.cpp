#include <mach/mach.h>
#include <pthread.h>
#include <sched.h>
#include <sys/sysctl.h>
#include <time.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>

#include "os_posix.h"

namespace quantune::os {
namespace {

constexpr int64_t kLargeBlock = 1 << 20;

// macOS has no public futex before 14.4: words share a few condition variables, which is enough for a handful of sleepers.
struct Parking {
  std::mutex mutex;
  std::condition_variable changed;
};
Parking& parking_of(const void* word) {
  static Parking* places = new Parking[64];
  return places[(reinterpret_cast<uintptr_t>(word) >> 6) % 64];
}

}  // namespace

bool wait_while_equal(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ms) {
  Parking& parking = parking_of(word);
  std::unique_lock<std::mutex> lock(parking.mutex);
  if (word->load() != expected) return true;
  // Without a predicate: wake_all ends the wait whatever the word holds, and those of other words are spurious wake-ups.
  if (timeout_ms < 0) {
    parking.changed.wait(lock);
    return true;
  }
  return parking.changed.wait_for(lock, std::chrono::milliseconds(timeout_ms)) == std::cv_status::no_timeout;
}

void wake_all(std::atomic<uint32_t>* word) {
  Parking& parking = parking_of(word);
  { std::lock_guard<std::mutex> lock(parking.mutex); }  // a sleeper is before its check or inside its wait
  parking.changed.notify_all();
}

void yield_thread() { sched_yield(); }
int64_t monotonic_ns() { return static_cast<int64_t>(clock_gettime_nsec_np(CLOCK_UPTIME_RAW)); }
void name_thread(const char* name) { pthread_setname_np(name); }

int usable_cores() {
  int cores = 0;
  size_t size = sizeof cores;
  if (sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0) != 0 || cores < 1) {  // the fast ones
    size = sizeof cores;
    if (sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) != 0) cores = 1;
  }
  return cores < 1 ? 1 : cores;
}

void* allocate(int64_t bytes) {
  if (bytes < kLargeBlock) {
    void* small = nullptr;
    return posix_memalign(&small, 64, static_cast<size_t>(bytes < 1 ? 1 : bytes)) == 0 ? small : nullptr;
  }
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

void release(void* data, int64_t bytes) {
  if (bytes < kLargeBlock) {
    std::free(data);
  } else {
    munmap(data, static_cast<size_t>(bytes));
  }
}

int64_t total_memory() {
  int64_t bytes = 0;
  size_t size = sizeof bytes;
  return sysctlbyname("hw.memsize", &bytes, &size, nullptr, 0) == 0 ? bytes : 0;
}

int64_t free_memory() {
  vm_statistics64_data_t pages;
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  static const host_t host = mach_host_self();  // every call adds a reference to the port
  if (host_statistics64(host, HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages), &count) != KERN_SUCCESS) {
    return total_memory();
  }
  int64_t available = static_cast<int64_t>(pages.free_count) + pages.inactive_count + pages.purgeable_count;
  return available * sysconf(_SC_PAGESIZE);
}

}  // namespace quantune::os
