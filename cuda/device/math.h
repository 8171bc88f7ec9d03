// Approximate functions of the special function unit.
#pragma once
#include <cuda_runtime.h>

#include <cmath>

namespace quantune::cuda {

// 2^x to 2 ulp; 0 where the result would be subnormal.
__device__ inline float exp2_approximate(float x) {
#if defined(QT_EMULATED)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace quantune::cuda
