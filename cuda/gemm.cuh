// Matrix products on the device: C (+)= sum over products of scale * A B, with a bias. What `matmul`, `linear` and the loss are
// made of. Which kernel runs: A in bfloat16 means tensor cores (factors rounded to bfloat16, sums in float32); any other A
// means float32 arithmetic throughout. The order of every sum depends on the shapes and the kind of device alone.
#pragma once
#include "device/types.h"
#include "stream.h"

namespace quantune::cuda {

// One side of a product, (outer index, k): a row of A or a column of B is one outer index. Element (i, k) lies at
// i * outer_stride + k * k_stride; one of the strides is 1. Any float type, or 4 bits (then the whole weight, from its start).
struct Factor {
  const void* data;
  int32_t dtype;
  const qt_quant* quant;  // host memory, read while launching
  int64_t outer_stride, k_stride;
};

// The factor whose rows are outer indices (k runs along a row), or whose columns are.
inline Factor row_factor(const qt_tensor* t) { return {t->data, t->dtype, t->quant, last_of(t), 1}; }
inline Factor column_factor(const qt_tensor* t) { return {t->data, t->dtype, t->quant, 1, last_of(t)}; }
inline Factor row_factor(const void* data, int32_t dtype, int64_t columns) { return {data, dtype, nullptr, columns, 1}; }
inline Factor column_factor(const void* data, int32_t dtype, int64_t columns) { return {data, dtype, nullptr, 1, columns}; }

struct Product {
  Factor a, b;
  int64_t k;
  float scale;
};

// C [m, n], any float type: element (i, j) at i * row_stride + j * column_stride; one of the strides is 1.
struct Result {
  void* data;
  int32_t dtype;
  int64_t row_stride, column_stride;
  bool accumulate;
  const qt_tensor* bias;  // [n], any float type, or null; not with accumulate
};

inline Result result_of(const qt_tensor* t, bool accumulate, const qt_tensor* bias = nullptr) {
  return {t->data, t->dtype, last_of(t), 1, accumulate, bias};
}
inline Result result_of(void* data, int32_t dtype, int64_t columns, bool accumulate, const qt_tensor* bias = nullptr) {
  return {data, dtype, columns, 1, accumulate, bias};
}

// One product, or two of which the second is an adapter's (k = its rank). C overlaps no factor. Takes scratch memory.
qt_status gemm(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c);

// What an adapter adds to a product A B: scale (A D) U, whose inner product A D [m, rank] is of use by itself.
struct Adapter {
  Factor down, up;  // D, k being the product's; U, k being the rank
  int64_t rank;
  float scale;
  Result inner;  // receives A D
};
// C (+)= A B + the adapter's part. A is read once where tensor cores compute enough of it at a time (gemm_mma.cuh).
qt_status gemm_adapted(qt_stream* stream, int64_t m, int64_t n, const Product& product, const Adapter& adapter,
                       const Result& c);

// Products that do not depend on each other, small ones: one launch where they are of a kind, aᵀ b in bfloat16. At most
// kMostInGroup.
struct GroupedProduct {
  int64_t m, n;
  Product product;
  Result c;
};
constexpr int kMostInGroup = 4;
qt_status gemm_group(qt_stream* stream, const GroupedProduct* products, int count);

// The same as gemm in float32 arithmetic, whatever A is.
qt_status gemm_float32(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c);

// Elements / length of the last dimension.
inline int64_t row_count(const qt_tensor* t) { return last_of(t) ? t->elements / last_of(t) : 0; }

inline int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

}  // namespace quantune::cuda
