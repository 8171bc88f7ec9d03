#include "gemm_pack.h"

#include "int8.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int width = Vec::width;

// A strip with fewer lanes than a register is stored in whole registers all the same: what is beyond its stride is overwritten
// by the next row, and past the last row there is room.

// k runs along rows: squares are loaded, transposed and stored.
template <class T>
void pack_rows(const T* from, int64_t row_stride, int lanes, int stride, int64_t k, float scale, float* out) {
  const Vec factor = Vec::broadcast(scale);
  for (int first = 0; first < stride; first += width) {
    const int rows = lanes - first < width ? lanes - first : width;
    for (int64_t i = 0; i < k; i += width) {
      const int depth = static_cast<int>(k - i < width ? k - i : width);
      Vec square[width];
      for (int r = 0; r < width; r++)
        square[r] = r < rows ? load_up_to(from + (first + r) * row_stride + i, depth) : Vec::zero();
      transpose(square);
      float* to = out + i * stride + first;
      for (int d = 0; d < depth; d++) (scale == 1.0f ? square[d] : square[d] * factor).store(to + d * stride);
    }
  }
}

// Lanes run along rows: rows are copied.
template <class T>
void pack_columns(const T* from, int64_t k_stride, int lanes, int stride, int64_t k, float scale, float* out) {
  const Vec factor = Vec::broadcast(scale);
  for (int64_t i = 0; i < k; i++, from += k_stride, out += stride) {
    for (int first = 0; first < stride; first += width) {
      const Vec x = lanes > first ? load_up_to(from + first, lanes - first) : Vec::zero();
      (scale == 1.0f ? x : x * factor).store(out + first);
    }
  }
}

#if defined(QT_CODE_WORDS)

// 4-bit rows of which no run of 64 straddles a block: the codes are transposed as words of eight, looked up and scaled in
// lanes.
void pack_code_rows(const FourBit& q, int64_t start, int64_t row_stride, int lanes, int stride, int64_t k, float scale,
                    float* out) {
  constexpr int words = 8, run = words * 8;  // elements a row in one square
  const CodeTable table = code_table(q.values);
  for (int first = 0; first < stride; first += width) {
    const int rows = lanes - first < width ? lanes - first : width;
    for (int64_t i = 0; i < k; i += run) {
      Vec square[width];
      alignas(64) float scales[width] = {};
      for (int r = 0; r < width; r++) {
        if (r >= rows) {
          square[r] = Vec::zero();
          continue;
        }
        const int64_t at = start + (first + r) * row_stride + i;
        square[r] = Vec::load_partial(reinterpret_cast<const float*>(q.codes + at / 2), words);
        scales[r] = q.scale(at >> q.block_shift) * scale;
      }
      transpose(square);
      const Vec factor = Vec::load(scales);
      float* to = out + i * stride + first;
      for (int w = 0; w < words; w++)
        for (int e = 0; e < 8; e++, to += stride) (look_up(table, square[w], e) * factor).store(to);
    }
  }
}

#endif

// Lanes along 4-bit rows of which no vector straddles a block.
void pack_code_columns(const FourBit& q, int64_t start, int64_t k_stride, int stride, int64_t k, float scale, float* out) {
  for (int64_t i = 0; i < k; i++, start += k_stride, out += stride) {
    const Vec factor = Vec::broadcast(q.scale(start >> q.block_shift) * scale);
    for (int first = 0; first < stride; first += width) (q.vec(start + first) * factor).store(out + first);
  }
}

void pack_four_bit(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out,
                   float* line) {
  const FourBit q(f.data, f.quant, f.dtype);
  const int64_t start = first * f.outer_stride + k_start * f.k_stride, block = f.quant->block_size;
  if (f.k_stride == 1) {
#if defined(QT_CODE_WORDS)
    if (f.outer_stride % 64 == 0 && k_start % 64 == 0 && k % 64 == 0)
      return pack_code_rows(q, start, f.outer_stride, lanes, stride, k, scale, out);
#endif
    for (int lane = 0; lane < stride; lane++) {
      if (lane < lanes) q.decode(start + lane * f.outer_stride, k, line);
      for (int64_t i = 0; i < k; i++) out[i * stride + lane] = lane < lanes ? line[i] * scale : 0.0f;
    }
    return;
  }
  if (lanes == stride && stride % width == 0 && f.k_stride % block == 0 && first % stride == 0 && block % stride == 0)
    return pack_code_columns(q, start, f.k_stride, stride, k, scale, out);
  for (int64_t i = 0; i < k; i++) {
    float* to = out + i * stride;
    q.decode(start + i * f.k_stride, lanes, to);
    for (int lane = 0; lane < stride; lane++) to[lane] = lane < lanes ? to[lane] * scale : 0.0f;
  }
}

}  // namespace

void pack_strip(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out,
                float* line) {
  if (is_four_bit(f.dtype)) return pack_four_bit(f, first, lanes, stride, k_start, k, scale, out, line);
  if (f.dtype == QT_LLM_INT8) return pack_int8(f, first, lanes, stride, k_start, k, scale, out);
  with_storage(f.dtype, [&](auto type) {
    const auto* from = static_cast<decltype(type)>(f.data) + first * f.outer_stride + k_start * f.k_stride;
    if (f.k_stride == 1)
      pack_rows(from, f.outer_stride, lanes, stride, k, scale, out);
    else
      pack_columns(from, f.k_stride, lanes, stride, k, scale, out);
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
