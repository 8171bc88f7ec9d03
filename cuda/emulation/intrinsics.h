// CUDA's device functions, by their own names.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine.h"
#include "vector_types.h"

// ---- barriers and fences ---------------------------------------------------------------------------------------------------
inline void __syncthreads() { quantune::cuda::emulation::sync_block(); }
inline int __syncthreads_count(int p) {
  int all;
  return quantune::cuda::emulation::sync_block_sum(p != 0, &all);
}
inline int __syncthreads_or(int p) { return __syncthreads_count(p) > 0; }
inline int __syncthreads_and(int p) {
  int all, sum = quantune::cuda::emulation::sync_block_sum(p != 0, &all);
  return sum == all;
}
inline void __syncwarp(unsigned int mask = 0xffffffffu) { quantune::cuda::emulation::sync_warp(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned int) { quantune::cuda::emulation::yield_thread(); }
[[noreturn]] inline void __trap() { quantune::cuda::emulation::kernel_error("__trap()"); }

// ---- shuffles and votes ----------------------------------------------------------------------------------------------------
namespace quantune::cuda::emulation {

struct ShuffleRequest {
  uint64_t value[2];
  int source;  // lane
};
void shuffle_combine(unsigned int mask, void* const* given, void* const* taken, int argument);
void ballot_combine(unsigned int mask, void* const* given, void* const* taken, int argument);
void match_combine(unsigned int mask, void* const* given, void* const* taken, int argument);

template <class T>
T shuffle(unsigned int mask, T value, int source) {
  static_assert(sizeof(T) <= 16, "a shuffle moves at most 16 bytes");
  ShuffleRequest request{{0, 0}, source};
  uint64_t result[2];
  std::memcpy(request.value, &value, sizeof(T));
  collective(Kind::kShuffle, mask, &request, result, shuffle_combine, 0);
  std::memcpy(static_cast<void*>(&value), result, sizeof(T));
  return value;
}
inline unsigned int ballot(unsigned int mask, bool vote) {
  unsigned int given = vote, taken = 0;
  collective(Kind::kBallot, mask, &given, &taken, ballot_combine, 0);
  return taken;
}

}  // namespace quantune::cuda::emulation

template <class T>
T __shfl_sync(unsigned int mask, T value, int source, int width = 32) {
  int lane = static_cast<int>(quantune::cuda::emulation::current->lane);
  return quantune::cuda::emulation::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = 32) {
  int lane = static_cast<int>(quantune::cuda::emulation::current->lane), source = lane ^ bits;
  return quantune::cuda::emulation::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  int lane = static_cast<int>(quantune::cuda::emulation::current->lane), source = lane + static_cast<int>(delta);
  return quantune::cuda::emulation::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  int lane = static_cast<int>(quantune::cuda::emulation::current->lane), source = lane - static_cast<int>(delta);
  return quantune::cuda::emulation::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
inline unsigned int __ballot_sync(unsigned int mask, int p) { return quantune::cuda::emulation::ballot(mask, p != 0); }
inline int __any_sync(unsigned int mask, int p) { return quantune::cuda::emulation::ballot(mask, p != 0) != 0; }
inline int __all_sync(unsigned int mask, int p) { return quantune::cuda::emulation::ballot(mask, p != 0) == mask; }
template <class T>
unsigned int __match_any_sync(unsigned int mask, T value) {
  uint64_t given = 0;
  unsigned int taken = 0;
  std::memcpy(&given, &value, sizeof(T));
  quantune::cuda::emulation::collective(quantune::cuda::emulation::Kind::kMatch, mask, &given, &taken,
                                        quantune::cuda::emulation::match_combine, 0);
  return taken;
}
template <class T, class F>
T qt_reduce_sync(unsigned int mask, T value, F f) {
  T result = value;
  bool first = true;
  for (int lane = 0; lane < 32; lane++) {
    T other = quantune::cuda::emulation::shuffle(mask, value, mask >> lane & 1 ? lane : __builtin_ctz(mask));
    if (!(mask >> lane & 1)) continue;
    result = first ? other : f(result, other);
    first = false;
  }
  return result;
}
inline int __reduce_add_sync(unsigned int mask, int v) {
  return qt_reduce_sync(mask, v, [](int a, int b) { return a + b; });
}
inline unsigned int __reduce_add_sync(unsigned int mask, unsigned int v) {
  return qt_reduce_sync(mask, v, [](unsigned a, unsigned b) { return a + b; });
}
inline int __reduce_max_sync(unsigned int mask, int v) {
  return qt_reduce_sync(mask, v, [](int a, int b) { return a > b ? a : b; });
}
inline unsigned int __reduce_max_sync(unsigned int mask, unsigned int v) {
  return qt_reduce_sync(mask, v, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline int __reduce_min_sync(unsigned int mask, int v) {
  return qt_reduce_sync(mask, v, [](int a, int b) { return a < b ? a : b; });
}
inline unsigned int __reduce_min_sync(unsigned int mask, unsigned int v) {
  return qt_reduce_sync(mask, v, [](unsigned a, unsigned b) { return a < b ? a : b; });
}

// What log2(width) shuffles among neighbours come to, in one rendezvous of the lanes: op(own, the lane's that is `step` away)
// for step = width / 2, …, 2, 1.
namespace quantune::cuda::emulation {

template <int width, class T, class Op>
void butterfly_combine(unsigned int, void* const* given, void* const* taken, int) {
  T values[32], next[32];
  for (int lane = 0; lane < 32; lane++) std::memcpy(static_cast<void*>(&values[lane]), given[lane], sizeof(T));
  for (int step = width / 2; step > 0; step /= 2) {
    for (int lane = 0; lane < 32; lane++) next[lane] = Op()(values[lane], values[lane ^ step]);
    std::memcpy(static_cast<void*>(values), next, sizeof(values));
  }
  for (int lane = 0; lane < 32; lane++) std::memcpy(taken[lane], &values[lane], sizeof(T));
}
template <int width, class Op, class T>
T butterfly(T value) {
  T result;
  collective(Kind::kReduce, 0xffffffffu, &value, &result, butterfly_combine<width, T, Op>, width);
  return result;
}

}  // namespace quantune::cuda::emulation

// ---- atomics ---------------------------------------------------------------------------------------------------------------
template <class T>
T atomicCAS(T* address, T expected, T desired) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "atomics are of 2, 4 or 8 bytes");
  uint64_t e = 0, d = 0, old = 0;
  std::memcpy(&e, &expected, sizeof(T));
  std::memcpy(&d, &desired, sizeof(T));
  quantune::cuda::emulation::atomic_compare(address, e, d, sizeof(T), &old);
  T result;
  std::memcpy(static_cast<void*>(&result), &old, sizeof(T));
  return result;
}
template <class T>
T qt_atomic_load(T* address) {  // a comparison that changes nothing
  return atomicCAS(address, T(), T());
}
template <class T, class F>
T qt_atomic_update(T* address, F f) {
  T old = qt_atomic_load(address);
  for (;;) {
    T seen = atomicCAS(address, old, f(old));
    if (std::memcmp(&seen, &old, sizeof(T)) == 0) return old;
    old = seen;
  }
}
#define QT_ATOMIC(name, expression)                                                          \
  template <class T, class U>                                                                \
  T name(T* address, U value_) {                                                             \
    T value = static_cast<T>(value_);                                                        \
    return qt_atomic_update(address, [value](T old) { return static_cast<T>(expression); }); \
  }
QT_ATOMIC(atomicAdd, old + value)
QT_ATOMIC(atomicSub, old - value)
QT_ATOMIC(atomicMax, old > value ? old : value)
QT_ATOMIC(atomicMin, old < value ? old : value)
QT_ATOMIC(atomicAnd, old& value)
QT_ATOMIC(atomicOr, old | value)
QT_ATOMIC(atomicXor, old ^ value)
QT_ATOMIC(atomicExch, (static_cast<void>(old), value))
QT_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
#undef QT_ATOMIC

// ---- memory ----------------------------------------------------------------------------------------------------------------
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
T __ldlu(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}
template <class T>
void __stwt(T* p, T v) {
  *p = v;
}
inline size_t __cvta_generic_to_shared(const void* p) { return quantune::cuda::emulation::shared_offset(p); }
