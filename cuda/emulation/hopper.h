// Barriers in shared memory, tensor copies and wgmma under emulation.
#pragma once
#include <cstdint>

#include "../device/tensor_map.h"
#include "async.h"

namespace quantune::cuda {
namespace emulation {

void barrier_init(uint64_t* barrier, uint32_t arrivals);
void barrier_arrive(uint64_t* barrier, uint32_t bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);
void copy_box(void* shared, const TensorMap& map, uint64_t* barrier, int column, int row);
void wgmma(float* d, int columns, uint64_t a, uint64_t b, bool a_across, bool b_across);
void wgmma_wait(int groups);
void wgmma_commit();

}  // namespace emulation

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) { emulation::barrier_init(barrier, arrivals); }
inline void barrier_init_fence() {}
inline void barrier_arrive(uint64_t* barrier) { emulation::barrier_arrive(barrier, 0); }
inline void barrier_expect(uint64_t* barrier, uint32_t bytes) { emulation::barrier_arrive(barrier, bytes); }
inline void barrier_wait(uint64_t* barrier, uint32_t parity) { emulation::barrier_wait(barrier, parity); }
inline void copy_box(void* shared, const TensorMap* map, uint64_t* barrier, int column, int row) {
  emulation::copy_box(shared, *map, barrier, column, row);
}
inline void async_proxy_fence() {}
inline void global_proxy_fence() {}
inline uint64_t tile_descriptor(const void* shared, uint32_t block) {
  const uint64_t address = shared_address(shared);
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(block >> 4) << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
inline void wgmma_fence() {}
inline void wgmma_commit() { emulation::wgmma_commit(); }
template <int groups>
inline void wgmma_wait() {
  emulation::wgmma_wait(groups);
}
inline void wgmma_finished(float (&)[64]) {}
template <int a_across, int b_across>
inline void wgmma_64x128(float (&d)[64], uint64_t a, uint64_t b) {
  emulation::wgmma(d, 128, a, b, a_across != 0, b_across != 0);
}
template <int registers>
inline void fewer_registers() {}
template <int registers>
inline void more_registers() {}

}  // namespace quantune::cuda
