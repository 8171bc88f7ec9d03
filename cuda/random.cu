// Random numbers and dropout, as a function of the element's place (philox.cuh).
#include "elements.cuh"
#include "philox.cuh"

namespace quantune::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCounters = 4;                 // neighbouring ones that a thread computes: 16 elements, four runs of four
constexpr int kGroup = 64, kRun = 16;        // a group's elements, and those that take the same word
constexpr int kPerGroup = kRun / kCounters;  // threads a group

// The numbers of one thread: value[w][j] in [0, 1) belongs to element first + kRun w + j.
struct Uniforms {
  int64_t first;
  float value[4][kCounters];

  __device__ explicit Uniforms(const PhiloxFamily& family) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, group = thread / kPerGroup;
    const int lane = static_cast<int>(thread % kPerGroup) * kCounters;
    first = group * kGroup + lane;
#pragma unroll
    for (int j = 0; j < kCounters; j++) {
      const PhiloxNumbers numbers(family.key, static_cast<uint32_t>(group * kRun + lane + j), family.a, family.b, family.c);
#pragma unroll
      for (int w = 0; w < 4; w++) value[w][j] = unit_interval(numbers.word[w]);
    }
  }
};

constexpr int kPerThread = 4 * kCounters;
int64_t random_blocks(int64_t n) { return ceil_div<int64_t>(ceil_div<int64_t>(n, kGroup) * kGroup, kThreads * kPerThread); }

template <class T>
using Four = Pack<T, kCounters>;

template <class T>
__device__ void store4(T* out, const Four<T>& values, int64_t count, bool aligned) {
  if (aligned && count >= kCounters) {
    store_pack<kCounters>(out, values);
  } else {
#pragma unroll
    for (int j = 0; j < kCounters; j++)
      if (j < count) out[j] = values[j];
  }
}

// Bound by the arithmetic of the generator (about twenty instructions a number) as much as by memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    random_uniform_kernel(T* out, PhiloxFamily family, float low, float range, int64_t n, bool aligned) {
  const Uniforms uniform(family);
#pragma unroll
  for (int w = 0; w < 4; w++) {
    const int64_t i = uniform.first + w * kRun;
    Four<T> values;
#pragma unroll
    for (int j = 0; j < kCounters; j++) values[j] = from_float<T>(fmaf(range, uniform.value[w][j], low));
    if (i < n) store4(out + i, values, n - i, aligned);
  }
}

// Box-Muller: words 0 and 1 of a counter make two numbers, words 2 and 3 two more.
template <class T>
__global__ void __launch_bounds__(kThreads)
    random_normal_kernel(T* out, PhiloxFamily family, float mean, float std, int64_t n, bool aligned) {
  const Uniforms uniform(family);
#pragma unroll
  for (int w = 0; w < 4; w += 2) {
    Four<T> first, second;
#pragma unroll
    for (int j = 0; j < kCounters; j++) {
      const float radius = sqrtf(-2.0f * logf(1.0f - uniform.value[w][j]));  // the logarithm of (0, 1]
      const float angle = 6.283185307179586f * uniform.value[w + 1][j];
      first[j] = from_float<T>(fmaf(std, radius * cosf(angle), mean));
      second[j] = from_float<T>(fmaf(std, radius * sinf(angle), mean));
    }
    const int64_t i = uniform.first + w * kRun;
    if (i < n) store4(out + i, first, n - i, aligned);
    if (i + kRun < n) store4(out + i + kRun, second, n - i - kRun, aligned);
  }
}

// rng holds seed (low, high), step and micro-batch: read here, so that a step can be replayed. Bound as the generator is.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(T* y, const T* x, const uint32_t* rng, uint32_t site, float p, float keep, int64_t n, bool aligned) {
  const Uniforms uniform({{rng[0], rng[1]}, site, rng[2], rng[3] & 0x7fffffffu});
#pragma unroll
  for (int w = 0; w < 4; w++) {
    const int64_t i = uniform.first + w * kRun, count = n - i;
    if (count <= 0) continue;
    Four<T> values;
    if (aligned && count >= kCounters) {
      values = load_pack<kCounters>(x + i);
    } else {
#pragma unroll
      for (int j = 0; j < kCounters; j++) values[j] = j < count ? x[i + j] : from_float<T>(0.0f);
    }
#pragma unroll
    for (int j = 0; j < kCounters; j++)
      values[j] = from_float<T>(to_float(values[j]) * (uniform.value[w][j] < p ? 0.0f : keep));
    store4(y + i, values, count, aligned);
  }
}

PhiloxFamily initialisation(int64_t seed, int64_t site) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          static_cast<uint32_t>(site),
          static_cast<uint32_t>(site >> 32),
          0x80000000u};
}

}  // namespace

qt_status random_uniform(qt_stream* stream, const qt_random_uniform_args* args) {
  const int64_t n = args->out->elements;
  return with_float(args->out->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(random_uniform_kernel<T>, random_blocks(n), kThreads, 0, stream, data_of<T>(args->out),
                  initialisation(args->seed, args->site), args->low, args->high - args->low, n, all_aligned(args->out->data));
  });
}

qt_status random_normal(qt_stream* stream, const qt_random_normal_args* args) {
  const int64_t n = args->out->elements;
  return with_float(args->out->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(random_normal_kernel<T>, random_blocks(n), kThreads, 0, stream, data_of<T>(args->out),
                  initialisation(args->seed, args->site), args->mean, args->std, n, all_aligned(args->out->data));
  });
}

qt_status dropout(qt_stream* stream, const qt_dropout_args* args) {
  if (!(args->p >= 0 && args->p <= 1)) return stream->fail(QT_INVALID_ARGUMENT, "p is %g, expected 0 to 1", args->p);
  const int64_t n = args->y->elements;
  const double keep = args->p < 1 ? 1.0 / (1.0 - args->p) : 0.0;
  return with_activation(args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(dropout_kernel<T>, random_blocks(n), kThreads, 0, stream, data_of<T>(args->y), data_of<const T>(args->x),
                  data_of<const uint32_t>(args->rng), args->site, args->p, keep, n, all_aligned(args->y->data, args->x->data));
  });
}

}  // namespace quantune::cuda
