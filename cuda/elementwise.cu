// Moving data, element by element: fill, convert, add, scale, sum, and the small int32 operations of a decode step.
#include "elements.cuh"
#include "lists.cuh"

namespace quantune::cuda {
namespace {

// Calls f with a value of any storage type that holds one element per slot.
template <class F>
qt_status with_any(qt_stream* stream, int32_t dtype, const F& f) {
  switch (dtype) {
    case QT_INT32:
      return f(int32_t{});
    case QT_INT8:
      return f(int8_t{});
    case QT_UINT8:
      return f(uint8_t{});
    case QT_NF4:
    case QT_FP4:
      return stream->fail(QT_UNSUPPORTED, "4-bit tensors are read by dequantize and written by quantize");
    default:
      return with_float(dtype, f);
  }
}

template <class T>
struct Integer {
  static constexpr bool value = false;
};
template <>
struct Integer<int32_t> {
  static constexpr bool value = true;
  static constexpr double lowest = -2147483648.0, highest = 2147483647.0;
};
template <>
struct Integer<int8_t> {
  static constexpr bool value = true;
  static constexpr double lowest = -128.0, highest = 127.0;
};
template <>
struct Integer<uint8_t> {
  static constexpr bool value = true;
  static constexpr double lowest = 0.0, highest = 255.0;
};

// Numbers become integers by rounding towards zero, clamped to what the type holds; NaN becomes 0.
template <class To>
__device__ To from_number(double x) {
  if constexpr (Integer<To>::value) {
    if (!(x == x)) return 0;
    return static_cast<To>(x < Integer<To>::lowest ? Integer<To>::lowest : x > Integer<To>::highest ? Integer<To>::highest : x);
  } else {
    return from_float<To>(static_cast<float>(x));
  }
}
template <class To, class From>
__device__ To convert(From x) {
  if constexpr (Integer<From>::value)
    return from_number<To>(static_cast<double>(x));
  else if constexpr (Integer<To>::value)
    return from_number<To>(static_cast<double>(to_float(x)));
  else
    return from_float<To>(to_float(x));
}

template <class T>
__device__ void fill_eight(T* out, int64_t count, double value, bool aligned) {
  Stored8<T> stored;
  const T element = from_number<T>(value);
#pragma unroll
  for (int i = 0; i < kEight; i++) stored.v[i] = element;
  store_stored8(out, stored, count, aligned);
}

template <class T>
struct Fill {
  T* out;
  double value;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const { fill_eight(out + i, count, value, aligned); }
};

template <class To, class From>
struct Convert {
  To* out;
  const From* x;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    const Stored8<From> from = load_stored8(x + i, count, aligned);
    Stored8<To> to;
#pragma unroll
    for (int j = 0; j < kEight; j++) to.v[j] = convert<To>(from.v[j]);
    store_stored8(out + i, to, count, aligned);
  }
};

template <class Out, class A, class B>
struct Add {
  Out* out;
  const A* a;
  const B* b;
  float alpha;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    Float8 x = load8(a + i, count, aligned);
    const Float8 y = load8(b + i, count, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) x.v[j] = fmaf(alpha, y.v[j], x.v[j]);
    store8(out + i, x, count, aligned);
  }
};

template <class Out, class In>
struct Scale {
  Out* out;
  const In* x;
  const void* by;
  int32_t by_dtype;
  float factor;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    const float scale = by ? factor * load8(by, by_dtype, 0, 1, false).v[0] : factor;
    Float8 y = load8(x + i, count, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) y.v[j] *= scale;
    store8(out + i, y, count, aligned);
  }
};

// ---- lists of tensors ------------------------------------------------------------------------------------------------

struct FillItem {
  void* data;
  int64_t size;
  int32_t dtype;
};

constexpr int64_t kFillPiece = kElementThreads * kEight * 8;

// Bound by memory: what is written.
__global__ void __launch_bounds__(kElementThreads) fill_list_kernel(ListPieces pieces, const FillItem* items, double value) {
  const Piece piece = find_piece(pieces, kFillPiece);
  const FillItem item = items[piece.item];
  auto fill_piece = [&](auto* out) {
    const bool aligned = reinterpret_cast<uintptr_t>(out) % 16 == 0;
    const int64_t end = piece.begin + kFillPiece < item.size ? piece.begin + kFillPiece : item.size;
    for (int64_t i = piece.begin + threadIdx.x * kEight; i < end; i += kElementThreads * kEight)
      fill_eight(out + i, end - i, value, aligned);
  };
  switch (item.dtype) {
    case QT_FLOAT32:
      return fill_piece(static_cast<float*>(item.data));
    case QT_BFLOAT16:
      return fill_piece(static_cast<bf16*>(item.data));
    case QT_FLOAT16:
      return fill_piece(static_cast<fp16*>(item.data));
    case QT_INT32:
      return fill_piece(static_cast<int32_t*>(item.data));
    case QT_INT8:
      return fill_piece(static_cast<int8_t*>(item.data));
    default:
      return fill_piece(static_cast<uint8_t*>(item.data));
  }
}

// ---- sum -------------------------------------------------------------------------------------------------------------

constexpr int64_t kSumPiece = kElementThreads * kEight * 8;

// One sum a block, of kSumPiece elements, whatever the device: 64 elements a thread in float32, the rest in float64. With one
// block the result is written at once. Bound by memory: what is read.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    sum_kernel(const T* x, int64_t n, bool aligned, double* partial, float* out, double factor, bool accumulate) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSumPiece;
  const int64_t end = first + kSumPiece < n ? first + kSumPiece : n;
  float sum = 0;
  for (int64_t i = first + threadIdx.x * kEight; i < end; i += kElementThreads * kEight) {
    const Float8 values = load8(x + i, end - i, aligned);
    float eight = 0;
#pragma unroll
    for (int j = 0; j < kEight; j++) eight += values.v[j];
    sum += eight;
  }
  const double total = block_sum(static_cast<double>(sum));
  if (threadIdx.x != 0) return;
  if (gridDim.x > 1)
    partial[blockIdx.x] = total;
  else
    *out = static_cast<float>((accumulate ? static_cast<double>(*out) : 0.0) + factor * total);
}

__global__ void __launch_bounds__(kElementThreads)
    finish_sum_kernel(const double* partial, int64_t pieces, float* out, double factor, bool accumulate) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += kElementThreads) sum += partial[i];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<float>((accumulate ? static_cast<double>(*out) : 0.0) + factor * total);
}

// ---- a decode step's integers ----------------------------------------------------------------------------------------

// index [rows], or [1] for all
__global__ void append_column_kernel(int32_t* matrix, const int32_t* values, const int32_t* index, bool one_index, int64_t rows,
                                     int64_t columns, Report report) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const int64_t from = one_index ? 0 : row;
  const int32_t column = index[from];
  if (column >= 0 && column < columns)
    matrix[row * columns + column] = values[row];
  else
    report.raise(from, column, columns - 1);
}

__global__ void increment_kernel(int32_t* x, int32_t by, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) x[i] += by;
}

}  // namespace

qt_status fill(qt_stream* stream, const qt_fill_args* args) {
  return with_any(stream, args->out->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = data_of<T>(args->out);
    return for_elements(stream, args->out->elements, Fill<T>{out, args->value, all_aligned(out)});
  });
}

qt_status fill_list(qt_stream* stream, const qt_fill_list_args* args) {
  return for_list<FillItem>(
      stream, args->outs, kFillPiece,
      [&](int64_t i) {
        const qt_tensor* out = args->outs->items[i];
        return FillItem{out->data, out->elements, out->dtype};
      },
      [&](const ListPieces& pieces, const FillItem* items) {
        return launch(fill_list_kernel, pieces.count, kElementThreads, 0, stream, pieces, items, args->value);
      });
}

qt_status copy(qt_stream* stream, const qt_copy_args* args) {
  return with_any(stream, args->out->dtype, [&](auto to) {
    return with_any(stream, args->x->dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      To* out = data_of<To>(args->out);
      const From* x = data_of<const From>(args->x);
      return for_elements(stream, args->out->elements, Convert<To, From>{out, x, all_aligned(out, x)});
    });
  });
}

qt_status add(qt_stream* stream, const qt_add_args* args) {
  return with_activation(args->out->dtype, [&](auto out_type) {
    return with_activation(args->a->dtype, [&](auto a_type) {
      return with_activation(args->b->dtype, [&](auto b_type) {
        using Out = decltype(out_type);
        using A = decltype(a_type);
        using B = decltype(b_type);
        Out* out = data_of<Out>(args->out);
        const A* a = data_of<const A>(args->a);
        const B* b = data_of<const B>(args->b);
        const float alpha = static_cast<float>(args->alpha);
        return for_elements(stream, args->out->elements, Add<Out, A, B>{out, a, b, alpha, all_aligned(out, a, b)});
      });
    });
  });
}

qt_status scale(qt_stream* stream, const qt_scale_args* args) {
  return with_activation(args->out->dtype, [&](auto out_type) {
    return with_activation(args->x->dtype, [&](auto x_type) {
      using Out = decltype(out_type);
      using In = decltype(x_type);
      Out* out = data_of<Out>(args->out);
      const In* x = data_of<const In>(args->x);
      const Scale<Out, In> body{out,
                                x,
                                data_of<const void>(args->by),
                                args->by ? args->by->dtype : QT_FLOAT32,
                                static_cast<float>(args->factor),
                                all_aligned(out, x)};
      return for_elements(stream, args->out->elements, body);
    });
  });
}

qt_status sum(qt_stream* stream, const qt_sum_args* args) {
  const int64_t n = args->x->elements, pieces = n > 0 ? ceil_div(n, kSumPiece) : 1;
  double* partial = stream->scratch_of<double>(pieces);
  if (!partial) return stream->out_of_scratch();
  float* out = data_of<float>(args->out);
  const bool accumulate = args->accumulate != 0;
  return with_activation(args->x->dtype, [&](auto zero) {
    const auto* x = data_of<const decltype(zero)>(args->x);
    qt_status status = launch(sum_kernel<decltype(zero)>, pieces, kElementThreads, 0, stream, x, n, all_aligned(x), partial,
                              out, args->factor, accumulate);
    if (status != QT_OK || pieces == 1) return status;
    return launch(finish_sum_kernel, 1, kElementThreads, 0, stream, partial, pieces, out, args->factor, accumulate);
  });
}

qt_status append_column(qt_stream* stream, const qt_append_column_args* args) {
  const int64_t rows = rows_of(args->matrix), columns = last_of(args->matrix);
  const Report report = stream->report("index[%lld] is %lld, expected 0 to %lld (the columns of matrix)");
  return launch(append_column_kernel, ceil_div<int64_t>(rows, kElementThreads), kElementThreads, 0, stream,
                data_of<int32_t>(args->matrix), data_of<const int32_t>(args->values), data_of<const int32_t>(args->index),
                args->index->elements == 1, rows, columns, report);
}

qt_status increment(qt_stream* stream, const qt_increment_args* args) {
  const int64_t n = args->x->elements;
  return launch(increment_kernel, ceil_div<int64_t>(n, kElementThreads), kElementThreads, 0, stream, data_of<int32_t>(args->x),
                static_cast<int32_t>(args->by), n);
}

}  // namespace quantune::cuda
