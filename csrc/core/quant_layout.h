// Where the parts of a 4-bit weight lie in its buffer.
#pragma once
#include "abi.h"

namespace quantune {

inline qt_quant quant_layout(int64_t elements, int64_t block_size, bool double_quant) {
  auto align = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  qt_quant quant{};
  quant.block_size = block_size;
  quant.blocks = (elements + block_size - 1) / block_size;
  quant.double_quant = double_quant;
  int64_t at = align((elements + 1) / 2);
  quant.absmax = at;
  at += align(double_quant ? quant.blocks : quant.blocks * 4);
  if (double_quant) {
    quant.nested_absmax = at;
    at += align((quant.blocks + 255) / 256 * 4);
    quant.nested_code = at;
    at += 256 * 4;
    quant.offset = at;
    at += 64;
  }
  quant.bytes = at;
  return quant;
}

}  // namespace quantune
