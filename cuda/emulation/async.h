// cp.async under emulation.
#pragma once
#include "engine.h"

namespace quantune::cuda {

inline uint32_t shared_address(const void* shared) { return static_cast<uint32_t>(emulation::shared_offset(shared)); }
inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  emulation::copy_async(shared, global, 16, valid);
}
inline void copy_async_8(void* shared, const void* global, bool valid = true) {
  emulation::copy_async(shared, global, 8, valid);
}
inline void copy_async_4(void* shared, const void* global, bool valid = true) {
  emulation::copy_async(shared, global, 4, valid);
}
inline void async_commit() { emulation::async_commit(); }
template <int groups>
inline void async_wait() {
  emulation::async_wait(groups);
}

}  // namespace quantune::cuda
