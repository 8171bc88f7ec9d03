// What the kernels behind gemm() share: factors and results as kernels see them, the last step of a product, and the launchers
// that gemm.cu chooses between.
#pragma once
#include "four_bit.cuh"
#include "gemm.cuh"

namespace quantune::cuda {

// A Factor in device terms, passed by value.
struct Source {
  const void* data;
  int32_t dtype;
  int64_t outer_stride, k_stride;
  FourBit four_bit;

  Source() = default;
  explicit Source(const Factor& f) : data(f.data), dtype(f.dtype), outer_stride(f.outer_stride), k_stride(f.k_stride) {
    if (f.quant) four_bit = FourBit(f.data, f.quant, f.dtype);
  }
  // Any element, as float32.
  __device__ float at(int64_t outer, int64_t k) const {
    const int64_t i = outer * outer_stride + k * k_stride;
    switch (dtype) {
      case QT_FLOAT32:
        return static_cast<const float*>(data)[i];
      case QT_BFLOAT16:
        return to_float(static_cast<const bf16*>(data)[i]);
      case QT_FLOAT16:
        return to_float(static_cast<const fp16*>(data)[i]);
      default:
        return four_bit.value(i);
    }
  }
};

template <class T>
__device__ inline void load_four_of(const T* from, bool vector, int valid, float (&to)[4]) {
  if (vector && valid == 4) {
    const Pack<T, 4> four = load_pack<4>(from);
#pragma unroll
    for (int j = 0; j < 4; j++) to[j] = to_float(four[j]);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) to[j] = j < valid ? to_float(from[j]) : 0.0f;
  }
}

// Four neighbours in memory from element i on, the first `valid` of them; zeros for the rest.
__device__ inline void load_four(const Source& s, bool vector, int64_t i, int valid, float (&to)[4]) {
  if (valid <= 0) {
#pragma unroll
    for (int j = 0; j < 4; j++) to[j] = 0.0f;
  } else if (s.dtype == QT_FLOAT32) {
    load_four_of(static_cast<const float*>(s.data) + i, vector, valid, to);
  } else if (s.dtype == QT_BFLOAT16) {
    load_four_of(static_cast<const bf16*>(s.data) + i, vector, valid, to);
  } else if (s.dtype == QT_FLOAT16) {
    load_four_of(static_cast<const fp16*>(s.data) + i, vector, valid, to);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) to[j] = j < valid ? s.four_bit.value(i + j) : 0.0f;
  }
}

__device__ inline float load_float(const void* data, int32_t dtype, int64_t i) {
  if (dtype == QT_BFLOAT16) return to_float(static_cast<const bf16*>(data)[i]);
  if (dtype == QT_FLOAT16) return to_float(static_cast<const fp16*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
__device__ inline void store_float(void* data, int32_t dtype, int64_t i, float value) {
  if (dtype == QT_BFLOAT16)
    static_cast<bf16*>(data)[i] = from_float<bf16>(value);
  else if (dtype == QT_FLOAT16)
    static_cast<fp16*>(data)[i] = from_float<fp16>(value);
  else
    static_cast<float*>(data)[i] = value;
}

// Whether load_four may take four neighbours at once.
inline bool may_load_four(const Factor& f) {
  if (f.quant) return false;
  const int64_t stride = f.k_stride == 1 ? f.outer_stride : f.k_stride, bytes = f.dtype == QT_FLOAT32 ? 16 : 8;
  return stride % 4 == 0 && reinterpret_cast<uintptr_t>(f.data) % bytes == 0;
}

// Where sums go: C itself or, when k is split over blocks, float32 partial sums [splits, m, n] that finish_splits adds in
// order.
struct Epilogue {
  void* c;
  int32_t dtype, bias_dtype;
  int64_t row_stride, column_stride;
  int64_t m, n;
  const void* bias;  // or null
  float* partial;    // or null
  bool accumulate;

  Epilogue() = default;
  Epilogue(const Result& r, int64_t m, int64_t n, float* partial)
      : c(r.data),
        dtype(r.dtype),
        bias_dtype(r.bias ? r.bias->dtype : 0),
        row_stride(r.row_stride),
        column_stride(r.column_stride),
        m(m),
        n(n),
        bias(r.bias ? r.bias->data : nullptr),
        partial(partial),
        accumulate(r.accumulate) {}

  __device__ float finished(int64_t i, int64_t column, float sum) const {
    if (bias) sum += load_float(bias, bias_dtype, column);
    return accumulate ? load_float(c, dtype, i) + sum : sum;
  }
  // Row and column must lie inside C.
  __device__ void store(int64_t row, int64_t column, int64_t split, float sum) const {
    if (partial) {
      partial[(split * m + row) * n + column] = sum;
      return;
    }
    const int64_t i = row * row_stride + column * column_stride;
    store_float(c, dtype, i, finished(i, column, sum));
  }
};

// Adds the partial sums of `splits` parts in order and finishes C.
qt_status finish_splits(qt_stream* stream, const Epilogue& epilogue, int64_t splits);

// In how many parts to cut `steps` steps of k so that about `blocks` blocks fill the device, each at least `least` steps.
inline int64_t choose_splits(const qt_stream* stream, int64_t blocks, int64_t steps, int64_t least) {
  if (blocks <= 0) return 1;
  int64_t splits = stream->multiprocessors / blocks;
  if (splits > steps / least) splits = steps / least;
  return splits < 1 ? 1 : splits > 64 ? 64 : splits;
}

// bfloat16 tensor cores: factors rounded to bfloat16 where they are not, sums in float32.
qt_status gemm_mma(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c);
// gemm_adapted in one launch; whether that is possible, and pays.
bool mma_takes_adapter(const qt_stream* stream, int64_t m, int64_t n, const Product& product, const Adapter& adapter);
qt_status gemm_mma_adapted(qt_stream* stream, int64_t m, int64_t n, const Product& product, const Adapter& adapter,
                           const Result& c);
// Few rows: whether gemm_few can have the product, and it.
bool is_few(int64_t m, const Product& product);
qt_status gemm_few(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c);

}  // namespace quantune::cuda
