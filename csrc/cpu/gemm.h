// Matrix products: C (+)= sum over products of scale * A B, with a bias. What `matmul`, `linear` and the loss are made of.
#pragma once
#include "four_bit.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// One side of a product, (outer index, k): a row of A or a column of B is one outer index. Element (i, k) lies at
// i * outer_stride + k * k_stride; one of the strides is 1. Any float type or 4 bits.
struct Factor {
  const void* data;
  int dtype;
  const qt_quant* quant;
  int64_t outer_stride, k_stride;
};

// The factor whose rows are outer indices (k runs along a row), or whose columns are.
inline Factor rows_of(const qt_tensor* t) { return {t->data, t->dtype, t->quant, t->shape[t->ndim - 1], 1}; }
inline Factor columns_of(const qt_tensor* t) { return {t->data, t->dtype, t->quant, 1, t->shape[t->ndim - 1]}; }
inline Factor rows_of(const float* data, int64_t columns) { return {data, QT_FLOAT32, nullptr, columns, 1}; }
inline Factor columns_of(const float* data, int64_t columns) { return {data, QT_FLOAT32, nullptr, 1, columns}; }

struct Product {
  Factor a, b;
  int64_t k;
  float scale;
};

// C [m, n]: element (i, j) at i * row_stride + j * column_stride; one of the strides is 1.
struct Result {
  void* data;
  int dtype;
  int64_t row_stride, column_stride;
  bool accumulate;
  const float* bias;  // [n] or null; not with accumulate
};

inline Result result_of(const qt_tensor* t, bool accumulate, const float* bias = nullptr) {
  return {t->data, t->dtype, t->shape[t->ndim - 1], 1, accumulate, bias};
}
inline Result result_of(float* data, int64_t columns, bool accumulate, const float* bias = nullptr) {
  return {data, QT_FLOAT32, columns, 1, accumulate, bias};
}

// `compute` is what the factors are multiplied as: QT_FLOAT32, or QT_BFLOAT16, to which they may then be rounded (they are in
// the variant with instructions for it, where that pays). Sums are float32. The order of every sum depends on the shapes alone:
// results repeat bit for bit whatever the number of threads.
qt_status gemm(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c, int compute);

// Products with few rows or columns and k contiguous on the other side: dot products, nothing is packed.
constexpr int64_t small_rows = 6, small_columns = 16;
bool is_small(int64_t m, int64_t n, const Product* products, int count);
qt_status gemm_small(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c, int compute);

// Elements / length of the last dimension.
inline int64_t row_count(const qt_tensor* t) { return t->shape[t->ndim - 1] ? t->elements / t->shape[t->ndim - 1] : 0; }
inline int64_t column_count(const qt_tensor* t) { return t->shape[t->ndim - 1]; }

inline qt_status out_of_scratch(qt_stream* stream, const char* what) {
  return stream->host->fail(stream, QT_OUT_OF_MEMORY, "%s: no memory for intermediate values", what);
}

// A float type as float32, whatever it is stored in.
inline float element_of(const void* data, int dtype, int64_t i) {
  switch (dtype) {
    case QT_BFLOAT16:
      return to_float(static_cast<const bfloat16*>(data)[i]);
    case QT_FLOAT16:
      return to_float(static_cast<const float16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// Calls body with a null pointer of the storage type: for choosing a template by dtype.
template <class Body>
inline auto with_storage(int dtype, const Body& body) {
  switch (dtype) {
    case QT_BFLOAT16:
      return body(static_cast<const bfloat16*>(nullptr));
    case QT_FLOAT16:
      return body(static_cast<const float16*>(nullptr));
    default:
      return body(static_cast<const float*>(nullptr));
  }
}

// out[0, n) = float32 of x[0, n), both contiguous.
inline void widen(const void* x, int dtype, int64_t start, int64_t n, float* out, float scale = 1.0f) {
  with_storage(dtype, [&](auto type) {
    const auto* from = static_cast<decltype(type)>(x) + start;
    const Vec s = Vec::broadcast(scale);
    for_each_vec(n, [&](int64_t i, int count) {
      if (count == Vec::width)
        (Vec::load(from + i) * s).store(out + i);
      else
        (Vec::load_partial(from + i, count) * s).store_partial(out + i, count);
    });
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
