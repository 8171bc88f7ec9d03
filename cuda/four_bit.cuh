// Reading 4-bit weights on the device: the code tables of NF4 and FP4 (QLoRA, Dettmers et al. 2023, as in bitsandbytes) and
// where the parts of a weight lie.
#pragma once
#include "device/types.h"

namespace quantune::cuda {

inline bool is_four_bit(int32_t dtype) { return dtype == QT_NF4 || dtype == QT_FP4; }

#define QT_NF4_VALUES                                                                                                      \
  -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,  \
      -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f, \
      0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f
#define QT_FP4_VALUES                                                                                                   \
  0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f, 0.1666666716337204f, 0.25f, 0.0f, \
      -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f

// NF4, then FP4.
static __device__ const float four_bit_values[32] = {QT_NF4_VALUES, QT_FP4_VALUES};

// The values of a type on the host, for kernels that get them as an argument.
inline void four_bit_code(int32_t dtype, float (&values)[16]) {
  constexpr float all[32] = {QT_NF4_VALUES, QT_FP4_VALUES};
  for (int i = 0; i < 16; i++) values[i] = all[i + (dtype == QT_NF4 ? 0 : 16)];
}
#undef QT_NF4_VALUES
#undef QT_FP4_VALUES

// The flattened weight: element i has the code in byte i / 2 (first element in the high nibble) and the scale of block
// i >> block_shift. Passed to kernels by value.
struct FourBit {
  const uint8_t* codes;
  const uint8_t* absmax;       // float32 or, with double quantization, uint8
  const float* nested_absmax;  // null without double quantization
  const float* nested_code;
  const float* offset;
  int32_t block_shift;
  int32_t table;  // where the values of the type start in four_bit_values

  FourBit() = default;
  FourBit(const void* data, const qt_quant* q, int32_t dtype) : FourBit() {
    const uint8_t* base = static_cast<const uint8_t*>(data);
    codes = base + q->codes;
    absmax = base + q->absmax;
    nested_absmax = q->double_quant ? reinterpret_cast<const float*>(base + q->nested_absmax) : nullptr;
    nested_code = q->double_quant ? reinterpret_cast<const float*>(base + q->nested_code) : nullptr;
    offset = q->double_quant ? reinterpret_cast<const float*>(base + q->offset) : nullptr;
    block_shift = q->block_size == 128 ? 7 : 6;
    table = dtype == QT_NF4 ? 0 : 16;
  }

  // bitsandbytes multiplies, rounds, then adds; a fused multiply-add would differ in the last bit.
  __device__ float scale(int64_t block) const {
    if (!nested_absmax) return reinterpret_cast<const float*>(absmax)[block];
    return __fadd_rn(__fmul_rn(nested_code[absmax[block]], nested_absmax[block >> 8]), *offset);
  }
  __device__ int code(int64_t i) const { return codes[i >> 1] >> ((~i & 1) * 4) & 15; }
  __device__ float value(int64_t i) const { return four_bit_values[table + code(i)] * scale(i >> block_shift); }
};

}  // namespace quantune::cuda
