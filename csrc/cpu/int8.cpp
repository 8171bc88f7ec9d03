// LLM.int8: its inputs, and its weights on their way into a product.
#include "int8.h"

#include "gemm_pack.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int width = Vec::width;

Vec magnitude(Vec x) { return max(x, -x); }

template <class T>
Vec load_some(const T* from, int count) {
  return count == width ? Vec::load(from) : Vec::load_partial(from, count);
}

// kept[j] = 1 where column j of x [m, k] has a magnitude of the threshold or more, else 0.
template <class T>
void find_outliers(qt_stream* stream, const T* x, int64_t stride, int64_t m, int64_t k, float threshold, float* kept) {
  constexpr int64_t block = 64;
  stream->parallel_for((k + block - 1) / block, [&](int64_t task) {
    const int64_t first = task * block, count = k - first < block ? k - first : block;
    float most[block] = {};
    for (int64_t i = 0; i < m; i++) {
      const T* row = x + i * stride + first;
      for_each_vec(count,
                   [&](int64_t j, int n) { max(magnitude(load_some(row + j, n)), Vec::load(most + j)).store(most + j); });
    }
    for (int64_t j = 0; j < count; j++) kept[first + j] = most[j] >= threshold ? 1.0f : 0.0f;
  });
}

template <class T>
void round_row(const T* x, int64_t k, float threshold, const float* kept, float* out) {
  const Vec limit = Vec::broadcast(threshold), zero = Vec::zero();
  Vec most = zero;
  for_each_vec(k, [&](int64_t j, int n) {
    const Vec a = magnitude(load_some(x + j, n));
    most = max(select_less(a, limit, a, zero), most);
  });
  const float largest = reduce_max(most);
  const Vec to_codes = Vec::broadcast(codes_per_unit(largest));
  const Vec step = Vec::broadcast(largest * (1.0f / 127.0f)), half = Vec::broadcast(0.5f);
  for_each_vec(k, [&](int64_t j, int n) {
    const Vec v = load_some(x + j, n), keep = load_some(kept + j, n);
    const Vec rounded = select_less(half, keep, v, round(v * to_codes) * step);
    if (n == width)
      rounded.store(out + j);
    else
      rounded.store_partial(out + j, n);
  });
}

}  // namespace

qt_status int8_input(qt_stream* stream, const Factor& x, int64_t m, int64_t k, double threshold, Factor* out) {
  float* rounded = stream->scratch_of<float>(m * k);
  float* kept = stream->scratch_of<float>(k);
  if (!rounded || !kept) return out_of_scratch(stream, "linear");
  const float limit = threshold > 0.0 ? static_cast<float>(threshold) : __builtin_inff();
  with_storage(x.dtype, [&](auto type) {
    const auto* from = static_cast<decltype(type)>(x.data);
    find_outliers(stream, from, x.outer_stride, m, k, limit, kept);
    const int64_t rows = 16384 / (k + 1) + 1;
    stream->parallel_for((m + rows - 1) / rows, [&](int64_t task) {
      for (int64_t i = task * rows; i < m && i < (task + 1) * rows; i++)
        round_row(from + i * x.outer_stride, k, limit, kept, rounded + i * k);
    });
  });
  *out = rows_of(rounded, k);
  return QT_OK;
}

// Reads whole registers: the codes of a row are followed by zeros up to a multiple of 64.
void pack_int8(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, float* out) {
  const Int8 w(f.data, f.quant);
  const int64_t row_bytes = f.quant->row_bytes;
  if (f.k_stride != 1) {  // lanes along rows
    for (int64_t i = 0; i < k; i++, out += stride) {
      const int8_t* from = w.codes + (k_start + i) * row_bytes + first;
      const Vec factor = Vec::broadcast(w.scale(k_start + i) * scale);
      for (int j = 0; j < stride; j += width)
        (lanes > j ? load_up_to(from + j, lanes - j) * factor : Vec::zero()).store(out + j);
    }
    return;
  }
  for (int j = 0; j < stride; j += width) {
    const int rows = lanes - j < width ? lanes - j : width;
    float scales[width] = {};
    for (int r = 0; r < rows; r++) scales[r] = w.scale(first + j + r) * scale;
    const Vec factor = Vec::load(scales);
    for (int64_t i = 0; i < k; i += width) {
      Vec square[width];
      for (int r = 0; r < width; r++)
        square[r] = r < rows ? Vec::load(w.codes + (first + j + r) * row_bytes + k_start + i) : Vec::zero();
      transpose(square);
      float* to = out + i * stride + j;
      for (int d = 0; d < width && i + d < k; d++) (square[d] * factor).store(to + d * stride);
    }
  }
}

#if defined(QT_PAIRS)
void pack_int8(const Factor& f, int64_t first, int lanes, int stride, int64_t k_start, int64_t k, float scale, Pair* out) {
  const Int8 w(f.data, f.quant);
  const int64_t row_bytes = f.quant->row_bytes;
  for (int64_t i = 0; i < k; i += 2, out += stride) {
    const int8_t* from = w.codes + (k_start + i) * row_bytes + first;
    const bool odd = i + 1 < k;
    const Vec factor = Vec::broadcast(w.scale(k_start + i) * scale);
    const Vec next = Vec::broadcast(odd ? w.scale(k_start + i + 1) * scale : 0.0f);
    for (int j = 0; j < stride; j += width) {
      const Vec zero = Vec::zero(), low = lanes > j ? load_up_to(from + j, lanes - j) * factor : zero;
      interleave(low, lanes > j && odd ? load_up_to(from + row_bytes + j, lanes - j) * next : zero).store(out + j);
    }
  }
}
#endif

}  // namespace quantune::cpu::QT_CPU_VARIANT
