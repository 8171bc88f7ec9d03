// Packing: a strip of outer indices of a Factor becomes [k][stride] floats, converted and scaled on the way.
#pragma once
#include "gemm.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// out[k * stride + lane] = scale * factor(first + lane, k_start + k) for lane < lanes; lanes up to stride are set to 0.
// `line` holds k floats of scratch. out may be written up to Vec::width floats beyond its end.
void pack_strip(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out,
                float* line);

}  // namespace quantune::cpu::QT_CPU_VARIANT
