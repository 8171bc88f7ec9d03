// A few words to test device primitives with, on a GPU and under emulation alike: buffers, launches, checks that count.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../device/launch.h"
#include "../device/types.h"
#include "../stream.h"

extern "C" const qt_backend* quantune_backend(uint32_t abi_version);

namespace quantune::cuda::test {

struct Environment {
  const qt_backend* backend = quantune_backend(QT_ABI_VERSION);
  qt_stream* stream = nullptr;
  std::string message, refused;
  int checks = 0, failures = 0;
};
inline Environment& environment() {
  static Environment instance;
  return instance;
}

inline qt_status remember(qt_stream*, qt_status status, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  environment().message = text;
  return status;
}

inline void expect(bool holds, const char* what) {
  environment().checks++;
  if (holds) return;
  environment().failures++;
  std::printf("not ok: %s %s\n", what, environment().message.c_str());
}

// Waits for everything queued.
inline qt_status settle() {
  struct Wait {
    std::atomic<int> status{-1};
  } wait;
  Environment& e = environment();
  qt_status status = e.backend->event(
      e.stream, [](void* context, qt_status s) { static_cast<Wait*>(context)->status.store(s); }, &wait);
  if (status != QT_OK) return status;
  while (wait.status.load() < 0) std::this_thread::yield();
  return static_cast<qt_status>(wait.status.load());
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count, T value = T()) : host(count, value) {
    data = static_cast<T*>(environment().backend->allocate(environment().stream, bytes()));
    put();
  }
  ~Buffer() { environment().backend->release(environment().stream, data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void put() { copy(data, host.data(), environment().backend->upload); }
  void get() { copy(host.data(), data, environment().backend->download); }
  T& operator[](size_t i) { return host[i]; }
  int64_t bytes() const { return static_cast<int64_t>(host.size() * sizeof(T)); }

  std::vector<T> host;
  T* data = nullptr;

 private:
  template <class Copy>
  void copy(void* to, const void* from, Copy transfer) {
    transfer(
        environment().stream, to, from, bytes(), [](void*, qt_status) {}, nullptr);
    expect(settle() == QT_OK, "copy");
  }
};

// Deterministic numbers in [-1, 1), multiples of 1/64: their products and short sums are exact.
inline float number(unsigned int i) {
  i = i * 2654435761u + 12345u;
  i ^= i >> 15;
  i *= 2246822519u;
  return static_cast<float>(static_cast<int>(i >> 25) - 64) / 64.0f;
}

}  // namespace quantune::cuda::test
