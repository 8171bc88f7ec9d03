// Packing for products of bfloat16: what gemm_pack.cpp does, in words of two elements of k.
#include "gemm_pack.h"
#include "int8.h"

#if defined(QT_PAIRS)

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int width = Pairs::width;

// Up to 32 elements of a row, scaled and rounded; the rest are 0.
template <class T>
Pairs load_pairs(const T* from, int64_t count, float scale) {
  const Vec factor = Vec::broadcast(scale);
  const Vec low = load_up_to(from, count) * factor;
  return round_pairs(low, count > width ? load_up_to(from + width, count - width) * factor : Vec::zero());
}
Pairs load_pairs(const bfloat16* from, int64_t count, float scale) {
  if (scale != 1.0f) return load_pairs<bfloat16>(from, count, scale);
  return count >= Pairs::elements ? Pairs::load(from) : Pairs::load_partial(from, static_cast<int>(count));
}

// k runs along rows: squares of words are loaded, transposed and stored.
template <class T>
void pack_rows(const T* from, int64_t row_stride, int lanes, int stride, int64_t k, float scale, Pair* out) {
  for (int first = 0; first < stride; first += width) {
    const int rows = lanes - first < width ? lanes - first : width;
    for (int64_t i = 0; i < k; i += Pairs::elements) {
      Vec square[width];
      for (int r = 0; r < width; r++)
        square[r] = r < rows ? load_pairs(from + (first + r) * row_stride + i, k - i, scale).bits() : Vec::zero();
      transpose(square);
      const int depth = k - i < Pairs::elements ? static_cast<int>(k - i + 1) / 2 : width;
      Pair* to = out + i / 2 * stride + first;
      for (int d = 0; d < depth; d++) pairs_of_bits(square[d]).store(to + d * stride);
    }
  }
}

// Lanes run along rows: two rows are interleaved.
template <class T>
void pack_columns(const T* from, int64_t k_stride, int lanes, int stride, int64_t k, float scale, Pair* out) {
  const Vec factor = Vec::broadcast(scale);
  for (int64_t i = 0; i < k; i += 2, from += 2 * k_stride, out += stride) {
    for (int first = 0; first < stride; first += width) {
      const int count = lanes - first;
      const Vec even = count > 0 ? load_up_to(from + first, count) : Vec::zero();
      const Vec odd = count > 0 && i + 1 < k ? load_up_to(from + k_stride + first, count) : Vec::zero();
      interleave(even * factor, odd * factor).store(out + first);
    }
  }
}

// 4-bit rows of which no run of 64 straddles a block, see gemm_pack.cpp.
void pack_code_rows(const FourBit& q, int64_t start, int64_t row_stride, int lanes, int stride, int64_t k, float scale,
                    Pair* out) {
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
      Pair* to = out + i / 2 * stride + first;
      for (int w = 0; w < words; w++)
        for (int e = 0; e < 8; e += 2, to += stride)
          interleave(look_up(table, square[w], e) * factor, look_up(table, square[w], e + 1) * factor).store(to);
    }
  }
}

// Lanes along 4-bit rows of which no vector straddles a block; k is even.
void pack_code_columns(const FourBit& q, int64_t start, int64_t k_stride, int stride, int64_t k, float scale, Pair* out) {
  for (int64_t i = 0; i < k; i += 2, start += 2 * k_stride, out += stride) {
    const Vec even = Vec::broadcast(q.scale(start >> q.block_shift) * scale);
    const Vec odd = Vec::broadcast(q.scale((start + k_stride) >> q.block_shift) * scale);
    for (int first = 0; first < stride; first += width)
      interleave(q.vec(start + first) * even, q.vec(start + k_stride + first) * odd).store(out + first);
  }
}

void pack_four_bit(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, Pair* out,
                   float* line) {
  const FourBit q(f.data, f.quant, f.dtype);
  const int64_t start = first * f.outer_stride + k_start * f.k_stride, block = f.quant->block_size;
  if (f.k_stride == 1) {
    if (f.outer_stride % 64 == 0 && k_start % 64 == 0 && k % 64 == 0)
      return pack_code_rows(q, start, f.outer_stride, lanes, stride, k, scale, out);
    line[k] = 0.0f;
    for (int lane = 0; lane < stride; lane++) {
      if (lane < lanes) q.decode(start + lane * f.outer_stride, k, line);
      for (int64_t i = 0; i < k; i += 2)
        out[i / 2 * stride + lane] = lane < lanes ? pair_of(line[i] * scale, line[i + 1] * scale) : Pair{0};
    }
    return;
  }
  if (lanes == stride && stride % width == 0 && f.k_stride % block == 0 && first % stride == 0 && block % stride == 0 &&
      k % 2 == 0)
    return pack_code_columns(q, start, f.k_stride, stride, k, scale, out);
  float *even = line, *odd = line + lanes;
  for (int64_t i = 0; i < k; i += 2) {
    q.decode(start + i * f.k_stride, lanes, even);
    if (i + 1 < k)
      q.decode(start + (i + 1) * f.k_stride, lanes, odd);
    else
      std::memset(odd, 0, static_cast<size_t>(lanes) * sizeof(float));
    Pair* to = out + i / 2 * stride;
    for (int lane = 0; lane < stride; lane++)
      to[lane] = lane < lanes ? pair_of(even[lane] * scale, odd[lane] * scale) : Pair{0};
  }
}

}  // namespace

void pack_strip(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, Pair* out,
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

#endif
