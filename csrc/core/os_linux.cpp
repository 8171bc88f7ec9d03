#include <linux/futex.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>

#include "os_posix.h"

namespace quantune::os {
namespace {

// Once glibc's malloc has seen large blocks freed it takes such (up to 32 MiB) from its heaps, and between activations of
// changing sizes these end up half empty but resident.
constexpr int64_t kLargeBlock = 128 << 10;
constexpr int64_t kHugePage = 2 << 20;

char* map(int64_t bytes) {
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : static_cast<char*>(data);
}

// From a boundary of huge pages on, so that as many as fit whole can be huge; what is left at the end stays small. Reading rows
// of activations from small pages costs a product 2 to 5 percent.
char* map_huge(int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  bytes = (bytes + page - 1) / page * page;
  char* memory = map(bytes + kHugePage);
  if (!memory) return nullptr;
  const int64_t before = kHugePage - static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory) % kHugePage);
  char* data = memory + before % kHugePage;
  if (data > memory) munmap(memory, static_cast<size_t>(data - memory));
  munmap(data + bytes, static_cast<size_t>(memory + kHugePage - data));
  madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a hint: page faults cost more than zeroing
  return data;
}

// Control group version 2 ("max 100000" or "150000 100000"), then version 1. Zero when there is no limit.
double cgroup_cores() {
  double quota = 0, period = 0;
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    int fields = std::fscanf(file, "%lf %lf", &quota, &period);
    std::fclose(file);
    return fields == 2 && period > 0 ? quota / period : 0;
  }
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
    if (std::fscanf(file, "%lf", &quota) != 1) quota = 0;
    std::fclose(file);
  }
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
    if (std::fscanf(file, "%lf", &period) != 1) period = 0;
    std::fclose(file);
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

int64_t number_in(const char* path) {
  long long value = -1;
  if (FILE* file = std::fopen(path, "r")) {
    if (std::fscanf(file, "%lld", &value) != 1) value = -1;  // "max"
    std::fclose(file);
  }
  return value;
}

// What the container's limit leaves, or -1 when there is none.
int64_t cgroup_free_memory() {
  int64_t limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
  if (limit < 0) {
    limit = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    used = number_in("/sys/fs/cgroup/memory/memory.usage_in_bytes");
  }
  return limit < 0 || used < 0 ? -1 : limit > used ? limit - used : 0;
}

}  // namespace

bool wait_while_equal(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ms) {
  timespec timeout{static_cast<time_t>(timeout_ms / 1000), static_cast<long>(timeout_ms % 1000 * 1000000)};
  long result = syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, expected,
                        timeout_ms < 0 ? nullptr : &timeout, nullptr, 0);
  return !(result == -1 && errno == ETIMEDOUT);
}

void wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

void yield_thread() { sched_yield(); }

int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

void name_thread(const char* name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

int usable_cores() {
  cpu_set_t set;
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  double limit = cgroup_cores();
  if (limit > 0 && limit < cores) cores = static_cast<int>(limit + 0.5);  // 1.5 cores: two threads
  return cores < 1 ? 1 : cores;
}

void* allocate(int64_t bytes) {
  if (bytes < kLargeBlock) return std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  return bytes < kHugePage ? map(bytes) : map_huge(bytes);
}

void release(void* data, int64_t bytes) {
  if (bytes < kLargeBlock) {
    std::free(data);
  } else {
    munmap(data, static_cast<size_t>(bytes));
  }
}

int64_t total_memory() {
  struct sysinfo info;
  return sysinfo(&info) == 0 ? static_cast<int64_t>(info.totalram) * info.mem_unit : 0;
}

int64_t free_memory() {
  int64_t available = 0;
  if (FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    long long kilobytes;
    while (std::fgets(line, sizeof line, file)) {
      if (std::sscanf(line, "MemAvailable: %lld kB", &kilobytes) == 1) available = kilobytes * 1024;
    }
    std::fclose(file);
  }
  int64_t contained = cgroup_free_memory();
  return contained >= 0 && contained < available ? contained : available;
}

}  // namespace quantune::os
