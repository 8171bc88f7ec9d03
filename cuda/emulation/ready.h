// Counters between the blocks of a grid under emulation. Blocks run one after the other: what is not there now never will be.
#pragma once
#include <cstdint>

namespace quantune::cuda {
namespace emulation {

void signal_ready(int32_t* counter);
void wait_ready(const int32_t* counter, int32_t count);

}  // namespace emulation

inline void signal_ready(int32_t* counter) { emulation::signal_ready(counter); }
inline void wait_ready(const int32_t* counter, int32_t count) { emulation::wait_ready(counter, count); }

}  // namespace quantune::cuda
