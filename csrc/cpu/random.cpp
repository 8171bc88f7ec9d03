// Random numbers and dropout: element i takes word i % 4 of the Philox block i / 4, whatever the threads and the vector width.
#include <cmath>

#include "dispatch.h"
#include "philox.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kBatch = 4 * kLanes;  // elements a PhiloxBlock serves

// A stream of counters: (block, a, b, c) under a key. Dropout and initialisation differ in c's highest bit.
struct Counter {
  PhiloxKey key;
  uint32_t a, b, c;
};

// body(i, bits, count): the random words of up to kBatch elements from i on, in parallel.
template <class Body>
void for_random(qt_stream* stream, int64_t n, const Counter& counter, const Body& body) {
  for_chunks(stream, n, kElementChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBatch) {
      PhiloxBlock<kLanes> block(counter.key, static_cast<uint32_t>(i / 4), counter.a, counter.b, counter.c);
      uint32_t bits[kBatch];
      for (int lane = 0; lane < kLanes; lane++) {
        for (int w = 0; w < 4; w++) bits[4 * lane + w] = block.word[w][lane];
      }
      body(i, bits, static_cast<int>(least(kBatch, end - i)));
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
  const float low = static_cast<float>(args->low), range = static_cast<float>(args->high - args->low);
  return with_float(stream, args->out->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = data_of<T>(args->out);
    for_random(stream, args->out->elements, initialisation_counter(args->seed, args->site),
               [&](int64_t i, const uint32_t* bits, int count) {
                 for (int e = 0; e < count; e++) out[i + e] = from_float<T>(low + range * unit_interval(bits[e]));
               });
    return QT_OK;
  });
}

// Box-Muller: words 0 and 1 of a block make its first two numbers, words 2 and 3 the others.
qt_status random_normal(qt_stream* stream, const qt_random_normal_args* args) {
  const float mean = static_cast<float>(args->mean), std = static_cast<float>(args->std);
  return with_float(stream, args->out->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = data_of<T>(args->out);
    for_random(stream, args->out->elements, initialisation_counter(args->seed, args->site),
               [&](int64_t i, const uint32_t* bits, int count) {
                 for (int e = 0; e < count; e += 2) {
                   float radius = std * sqrtf(-2.0f * logf(1.0f - unit_interval(bits[e])));  // the logarithm of (0, 1]
                   float angle = 6.283185307179586f * unit_interval(bits[e + 1]);
                   out[i + e] = from_float<T>(mean + radius * cosf(angle));
                   if (e + 1 < count) out[i + e + 1] = from_float<T>(mean + radius * sinf(angle));
                 }
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
  const float keep = args->p < 1 ? static_cast<float>(1.0 / (1.0 - args->p)) : 0.0f, p = static_cast<float>(args->p);
  return with_activation(stream, args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = data_of<T>(args->y);
    const T* x = data_of<const T>(args->x);
    for_random(stream, args->y->elements, counter, [&](int64_t i, const uint32_t* bits, int count) {
      float uniform[kBatch];
      for (int e = 0; e < kBatch; e++) uniform[e] = unit_interval(bits[e]);
      for_each_vec(count, [&](int64_t e, int n) {
        Vec factor = select_less(Vec::load(uniform + e), Vec::broadcast(p), Vec::zero(), Vec::broadcast(keep));
        store(load(x + i + e, n) * factor, y + i + e, n);
      });
    });
    return QT_OK;
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
