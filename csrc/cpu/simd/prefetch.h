// Fetches the cache line at p, which may lie anywhere: hints for what the hardware does not foresee.
#pragma once

namespace quantune::cpu::QT_CPU_VARIANT {

constexpr int cache_line = 16;  // floats

inline void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}
inline void prefetch_to_write(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 1);
#else
  (void)p;
#endif
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
