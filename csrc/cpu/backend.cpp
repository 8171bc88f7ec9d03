// The CPU as a backend: completes everything before it returns.
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>

#include "../core/backends.h"
#include "../core/os.h"
#include "../core/thread_pool.h"
#include "arena.h"

namespace quantune {
namespace cpu {

namespace generic {
void fill_table(qt_backend* backend);
}
#if defined(QT_WITH_X64_VARIANTS)
namespace avx2 {
void fill_table(qt_backend* backend);
}
namespace avx512 {
void fill_table(qt_backend* backend);
}
namespace avx512bf16 {
void fill_table(qt_backend* backend);
}
#endif

namespace {

// The most of a fresh block that is taken without asking whether the machine has it.
constexpr int64_t kUnasked = 16 << 20;

struct CpuStream : qt_stream {
  std::shared_ptr<ThreadPool> shared_pool;
  ScratchArena scratch_arena;
  std::unordered_map<void*, int64_t> sizes;
  ~CpuStream() {
    for (const auto& block : sizes) os::release(block.first, block.second);
  }
};

qt_stream* open_stream(const qt_host* host, int32_t) {
  auto* stream = new (std::nothrow) CpuStream;
  if (!stream) return nullptr;
  stream->host = host;
  stream->shared_pool = ThreadPool::acquire();
  stream->pool = stream->shared_pool.get();
  stream->arena = &stream->scratch_arena;
  return stream;
}

const char* refusal() { return "not enough memory"; }
void close_stream(qt_stream* stream) { delete static_cast<CpuStream*>(stream); }

void* allocate(qt_stream* stream, int64_t bytes) {
  if (bytes > kUnasked && bytes > os::free_memory()) return nullptr;  // the system would promise it and end the process later
  void* data = os::allocate(bytes);
  if (data) static_cast<CpuStream*>(stream)->sizes[data] = bytes;
  return data;
}

void release(qt_stream* stream, void* data) {
  auto& sizes = static_cast<CpuStream*>(stream)->sizes;
  auto found = sizes.find(data);
  if (found == sizes.end()) return;
  os::release(data, found->second);
  sizes.erase(found);
}

qt_memory_info memory_info(qt_stream*) { return {os::free_memory(), os::total_memory()}; }

qt_status copy(qt_stream* stream, void* to, const void* from, int64_t bytes, qt_done done, void* context) {
  stream->pool->resize_if_asked();
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  done(context, QT_OK);
  return QT_OK;
}

qt_status event(qt_stream* stream, qt_done done, void* context) {
  stream->pool->resize_if_asked();
  done(context, QT_OK);
  return QT_OK;
}

qt_status sticky_status(qt_stream*) { return QT_OK; }

template <void (*fill)(qt_backend*)>
const qt_backend* table_of(const char* name) {
  static const qt_backend* table = [name] {
    auto* backend = new qt_backend{};
    backend->abi_version = QT_ABI_VERSION;
    backend->name = "cpu";
    backend->variant = name;
    backend->open = open_stream;
    backend->refusal = refusal;
    backend->close = close_stream;
    backend->allocate = allocate;
    backend->release = release;
    backend->memory_info = memory_info;
    backend->upload = copy;
    backend->download = copy;
    backend->event = event;
    backend->operation_done = [](qt_stream* stream) { stream->reset_scratch(); };
    backend->sticky_status = sticky_status;
    fill(backend);
    return backend;
  }();
  return table;
}

struct Variant {
  const char* name;
  const qt_backend* (*table)(const char* name);
  bool (*usable)();
  const char* needs;
};

#if defined(QT_WITH_X64_VARIANTS)
bool has_avx2();
bool has_avx512();
bool has_avx512bf16();
#endif

// The slowest first: of those that the CPU can run the last is taken.
constexpr Variant variants[] = {
    {"generic", table_of<generic::fill_table>, [] { return true; }, nullptr},
#if defined(QT_WITH_X64_VARIANTS)
    {"avx2", table_of<avx2::fill_table>, has_avx2, "AVX2 with FMA"},
    {"avx512", table_of<avx512::fill_table>, has_avx512, "AVX-512 (F, BW, DQ, VL)"},
    {"avx512bf16", table_of<avx512bf16::fill_table>, has_avx512bf16, "AVX-512 with BF16"},
#endif
};

#if defined(QT_WITH_X64_VARIANTS)
#if defined(_MSC_VER) && !defined(__clang__)
// Leaf 7, when the system saves the registers that `mask` of XCR0 names, else zeros.
struct ExtendedFeatures {
  int first[4] = {}, second[4] = {};  // of subleaf 0 and 1: EAX, EBX, ECX, EDX
  explicit ExtendedFeatures(unsigned long long mask) {
    int leaf[4];
    __cpuid(leaf, 1);
    bool fma = leaf[2] >> 12 & 1, saves = leaf[2] >> 27 & 1;
    if (!fma || !saves || (_xgetbv(0) & mask) != mask) return;
    __cpuidex(first, 7, 0);
    if (first[0] >= 1) __cpuidex(second, 7, 1);
  }
};
bool has_avx2() { return ExtendedFeatures(0x6).first[1] >> 5 & 1; }
bool has_native_avx512() {
  unsigned needed = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  return (static_cast<unsigned>(ExtendedFeatures(0xe6).first[1]) & needed) == needed;
}
bool has_native_bf16() { return ExtendedFeatures(0xe6).second[0] >> 5 & 1; }
#else
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_native_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_native_bf16() { return __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(QT_SIMDE)
constexpr bool emulated = true;  // a build for tests: see CMakeLists.txt
#else
constexpr bool emulated = false;
#endif
bool has_avx512() { return emulated || has_native_avx512(); }
bool has_avx512bf16() { return emulated || (has_native_avx512() && has_native_bf16()); }
#endif

}  // namespace
}  // namespace cpu

const qt_backend* cpu_backend(std::string* error) {
  using namespace cpu;
  const char* forced = std::getenv("QUANTUNE_CPU");
  const std::string wanted = forced ? forced : "";
  const Variant* chosen = nullptr;
  std::string known;
  for (const Variant& variant : variants) {
    known += (known.empty() ? "" : ", ") + std::string(variant.name);
    const bool usable = variant.usable();
    if (wanted == variant.name && !usable) {
      *error = "QUANTUNE_CPU=" + wanted + ", but this CPU has no " + variant.needs;
      return nullptr;
    }
    if (wanted.empty() ? usable : wanted == variant.name) chosen = &variant;
  }
  if (chosen) return chosen->table(chosen->name);
  *error = "QUANTUNE_CPU=" + wanted + " is not a variant of this build; known are " + known;
  return nullptr;
}

}  // namespace quantune
