// Random numbers and dropout. Elements come in groups of 64, served by 16 Philox counters: element i takes word (i / 16) % 4 of
// the counter 16 (i / 64) + i % 16, whatever the threads and the vector width, and without moving a number between lanes.
#include <cmath>

#include "dispatch.h"
#include "philox.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr int kCounters = 16;
constexpr int64_t kGroup = 4 * kCounters;
static_assert(kCounters % Vec::width == 0 && kElementChunk % kGroup == 0, "groups are whole vectors, chunks whole groups");

// A family of counters: (counter, a, b, c) under a key. The highest bit of c tells dropout from initialisation.
struct Counter {
  PhiloxKey key;
  uint32_t a, b, c;
};

// body(i, uniform): 64 numbers in [0, 1) for the group of elements from i on, in parallel.
template <class Body>
void for_random(qt_stream* stream, int64_t n, const Counter& counter, const Body& body) {
  for_chunks(stream, n, kElementChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kGroup) {
      float uniform[kGroup];
      for (int lane = 0; lane < kCounters; lane += Vec::width) {
        const PhiloxBlock block(counter.key, static_cast<uint32_t>(i / 4 + lane), counter.a, counter.b, counter.c);
        for (int w = 0; w < 4; w++) unit_interval(block.word[w]).store(uniform + w * kCounters + lane);
      }
      body(i, uniform);
    }
  });
}

Counter initialisation_counter(int64_t seed, int64_t site) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          static_cast<uint32_t>(site),
          static_cast<uint32_t>(site >> 32),
          0x80000000u};
}

}  // namespace

qt_status random_uniform(qt_stream* stream, const qt_random_uniform_args* args) {
  const Vec low = Vec::broadcast(static_cast<float>(args->low)),
            range = Vec::broadcast(static_cast<float>(args->high - args->low));
  const int64_t size = args->out->elements;
  return with_float(stream, args->out->dtype, [&](auto zero) {
    auto* out = data_of<decltype(zero)>(args->out);
    for_random(stream, size, initialisation_counter(args->seed, args->site), [&](int64_t i, const float* uniform) {
      for_each_vec(least(kGroup, size - i),
                   [&](int64_t e, int n) { store(fma(range, Vec::load(uniform + e), low), out + i + e, n); });
    });
    return QT_OK;
  });
}

// Box-Muller: words 0 and 1 of a counter make two numbers, words 2 and 3 two more.
qt_status random_normal(qt_stream* stream, const qt_random_normal_args* args) {
  const Vec mean = Vec::broadcast(static_cast<float>(args->mean)), std = Vec::broadcast(static_cast<float>(args->std));
  const int64_t size = args->out->elements;
  return with_float(stream, args->out->dtype, [&](auto zero) {
    auto* out = data_of<decltype(zero)>(args->out);
    for_random(stream, size, initialisation_counter(args->seed, args->site), [&](int64_t i, const float* uniform) {
      float normal[kGroup];
      for (int first = 0; first < kGroup; first += 2 * kCounters) {
        for (int at = first; at < first + kCounters; at++) {
          const float radius = sqrtf(-2.0f * logf(1.0f - uniform[at]));  // the logarithm of (0, 1]
          const float angle = 6.283185307179586f * uniform[at + kCounters];
          normal[at] = radius * cosf(angle);
          normal[at + kCounters] = radius * sinf(angle);
        }
      }
      for_each_vec(least(kGroup, size - i),
                   [&](int64_t e, int n) { store(fma(std, Vec::load(normal + e), mean), out + i + e, n); });
    });
    return QT_OK;
  });
}

qt_status dropout(qt_stream* stream, const qt_dropout_args* args) {
  if (!(args->p >= 0 && args->p <= 1)) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "p is %g, expected 0 to 1", args->p);
  }
  const uint32_t* rng = data_of<const uint32_t>(args->rng);
  const Counter counter{{rng[0], rng[1]}, static_cast<uint32_t>(args->site), rng[2], rng[3] & 0x7fffffffu};
  const Vec p = Vec::broadcast(static_cast<float>(args->p));
  const Vec keep = Vec::broadcast(args->p < 1 ? static_cast<float>(1.0 / (1.0 - args->p)) : 0.0f);
  const int64_t size = args->y->elements;
  return with_activation(stream, args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = data_of<T>(args->y);
    const T* x = data_of<const T>(args->x);
    for_random(stream, size, counter, [&](int64_t i, const float* uniform) {
      for_each_vec(least(kGroup, size - i), [&](int64_t e, int n) {
        const Vec factor = select_less(Vec::load(uniform + e), p, Vec::zero(), keep);
        store(load(x + i + e, n) * factor, y + i + e, n);
      });
    });
    return QT_OK;
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
