#include "gemm_pack.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

// A run of n consecutive elements of the factor's storage, as float32.
void load_run(const Factor& f, int64_t start, int64_t n, float scale, float* out) {
  if (!is_four_bit(f.dtype)) return widen(f.data, f.dtype, start, n, out, scale);
  FourBit(f.data, f.quant, f.dtype).decode(start, n, out);
  if (scale != 1.0f)
    for (int64_t i = 0; i < n; i++) out[i] *= scale;
}

}  // namespace

void pack_strip(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out,
                float* line) {
  if (f.k_stride == 1) {
    for (int lane = 0; lane < lanes; lane++) {
      load_run(f, (first + lane) * f.outer_stride + k_start, k, scale, line);
      for (int64_t i = 0; i < k; i++) out[i * stride + lane] = line[i];
    }
    for (int lane = lanes; lane < stride; lane++)
      for (int64_t i = 0; i < k; i++) out[i * stride + lane] = 0.0f;
    return;
  }
  for (int64_t i = 0; i < k; i++) {
    float* to = out + i * stride;
    load_run(f, (k_start + i) * f.k_stride + first, lanes, scale, to);
    for (int lane = lanes; lane < stride; lane++) to[lane] = 0.0f;
  }
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
