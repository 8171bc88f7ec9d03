// Where the parts of a quantized weight lie in its buffer.
#pragma once
#include "abi.h"

namespace quantune {

inline int64_t align_part(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline qt_quant four_bit_layout(int64_t elements, int64_t block_size, bool double_quant) {
  qt_quant quant{};
  quant.block_size = block_size;
  quant.blocks = (elements + block_size - 1) / block_size;
  quant.double_quant = double_quant;
  int64_t at = align_part((elements + 1) / 2);
  quant.absmax = at;
  at += align_part(double_quant ? quant.blocks : quant.blocks * 4);
  if (double_quant) {
    quant.nested_absmax = at;
    at += align_part((quant.blocks + 255) / 256 * 4);
    quant.nested_code = at;
    at += 256 * 4;
    quant.offset = at;
    at += 64;
  }
  quant.bytes = at;
  return quant;
}

// [outputs, inputs], or the other way round when transposed.
inline qt_quant int8_layout(int64_t rows, int64_t columns, bool transposed, float threshold) {
  qt_quant quant{};
  quant.block_size = transposed ? rows : columns;
  quant.blocks = transposed ? columns : rows;
  quant.row_bytes = align_part(quant.block_size);
  quant.absmax = quant.blocks * quant.row_bytes;
  quant.bytes = quant.absmax + align_part(quant.blocks * 4);
  quant.transposed = transposed;
  quant.threshold = threshold;
  return quant;
}

}  // namespace quantune
