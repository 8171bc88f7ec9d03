// Moving data: fill, convert, add, scale, sum, gather and scatter rows.
#include <cmath>

#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {
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
      return stream->host->fail(stream, QT_UNSUPPORTED, "4-bit tensors are read by dequantize and written by quantize");
    default:
      return with_float(stream, dtype, f);
  }
}

template <class T>
constexpr bool is_integer = false;
template <>
constexpr bool is_integer<int32_t> = true;
template <>
constexpr bool is_integer<int8_t> = true;
template <>
constexpr bool is_integer<uint8_t> = true;

template <class T>
constexpr double lowest_integer = sizeof(T) == 4           ? -2147483648.0
                                  : static_cast<T>(-1) < 0 ? -128.0
                                                           : 0.0;
template <class T>
constexpr double highest_integer = sizeof(T) == 4           ? 2147483647.0
                                   : static_cast<T>(-1) < 0 ? 127.0
                                                            : 255.0;

// Numbers become integers by rounding towards zero, clamped to what the type holds; NaN becomes 0.
template <class To>
To from_number(double x) {
  if constexpr (is_integer<To>) {
    if (!(x == x)) return 0;
    return static_cast<To>(x < lowest_integer<To> ? lowest_integer<To> : x > highest_integer<To> ? highest_integer<To> : x);
  } else {
    return from_float<To>(static_cast<float>(x));
  }
}
template <class From>
double to_number(From x) {
  if constexpr (is_integer<From>)
    return x;
  else
    return to_float(x);
}

template <class T>
void fill_range(T* out, int64_t begin, int64_t end, double value) {
  const T element = from_number<T>(value);
  for (int64_t i = begin; i < end; i++) out[i] = element;
}

template <class To, class From>
void convert_range(To* out, const From* x, int64_t begin, int64_t end) {
  if constexpr (is_integer<To> || is_integer<From>) {
    for (int64_t i = begin; i < end; i++) out[i] = from_number<To>(to_number(x[i]));
  } else {
    for_vectors(begin, end, [&](int64_t i, int count) { store(load(x + i, count), out + i, count); });
  }
}

int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case QT_FLOAT32:
    case QT_INT32:
      return 4;
    case QT_BFLOAT16:
    case QT_FLOAT16:
      return 2;
    default:
      return 1;
  }
}

// Index lists are small: they are checked in one pass before any work is done.
qt_status check_rows(qt_stream* stream, const qt_tensor* rows, int64_t limit, const char* what) {
  const int32_t* index = data_of<const int32_t>(rows);
  for (int64_t i = 0; i < rows->elements; i++) {
    if (index[i] < 0 || index[i] >= limit) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "rows[%lld] is %d, expected 0 to %lld (the rows of %s)",
                                static_cast<long long>(i), index[i], static_cast<long long>(limit - 1), what);
    }
  }
  return QT_OK;
}

}  // namespace

qt_status fill(qt_stream* stream, const qt_fill_args* args) {
  return with_any(stream, args->out->dtype, [&](auto zero) {
    auto* out = data_of<decltype(zero)>(args->out);
    for_chunks(stream, args->out->elements, 4 * kElementChunk,
               [&](int64_t begin, int64_t end) { fill_range(out, begin, end, args->value); });
    return QT_OK;
  });
}

qt_status fill_list(qt_stream* stream, const qt_fill_list_args* args) {
  for (int64_t i = 0; i < args->outs->count; i++) {
    qt_status status = with_any(stream, args->outs->items[i]->dtype, [](auto) { return QT_OK; });
    if (status != QT_OK) return status;
  }
  return for_list(stream, args->outs, 4 * kElementChunk, [&](int64_t index, int64_t begin, int64_t end, int64_t) {
    const qt_tensor* out = args->outs->items[index];
    with_any(stream, out->dtype, [&](auto zero) {
      fill_range(data_of<decltype(zero)>(out), begin, end, args->value);
      return QT_OK;
    });
  });
}

qt_status copy(qt_stream* stream, const qt_copy_args* args) {
  return with_any(stream, args->out->dtype, [&](auto to) {
    return with_any(stream, args->x->dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      for_chunks(stream, args->out->elements, 4 * kElementChunk, [&](int64_t begin, int64_t end) {
        if (args->out->dtype == args->x->dtype) {
          std::memmove(data_of<To>(args->out) + begin, data_of<const To>(args->x) + begin, (end - begin) * sizeof(To));
        } else {
          convert_range(data_of<To>(args->out), data_of<const From>(args->x), begin, end);
        }
      });
      return QT_OK;
    });
  });
}

qt_status add(qt_stream* stream, const qt_add_args* args) {
  const Vec alpha = Vec::broadcast(static_cast<float>(args->alpha));
  return with_activation(stream, args->out->dtype, [&](auto out_type) {
    return with_activation(stream, args->a->dtype, [&](auto a_type) {
      return with_activation(stream, args->b->dtype, [&](auto b_type) {
        auto* out = data_of<decltype(out_type)>(args->out);
        const auto* a = data_of<const decltype(a_type)>(args->a);
        const auto* b = data_of<const decltype(b_type)>(args->b);
        for_chunks(stream, args->out->elements, kElementChunk, [&](int64_t begin, int64_t end) {
          for_vectors(begin, end,
                      [&](int64_t i, int count) { store(fma(alpha, load(b + i, count), load(a + i, count)), out + i, count); });
        });
        return QT_OK;
      });
    });
  });
}

qt_status scale(qt_stream* stream, const qt_scale_args* args) {
  float factor = static_cast<float>(args->factor);
  if (args->by) {
    qt_status status = with_float(stream, args->by->dtype, [&](auto zero) {
      factor *= to_float(*data_of<const decltype(zero)>(args->by));
      return QT_OK;
    });
    if (status != QT_OK) return status;
  }
  return with_activation(stream, args->out->dtype, [&](auto out_type) {
    return with_activation(stream, args->x->dtype, [&](auto x_type) {
      auto* out = data_of<decltype(out_type)>(args->out);
      const auto* x = data_of<const decltype(x_type)>(args->x);
      for_chunks(stream, args->out->elements, kElementChunk, [&](int64_t begin, int64_t end) {
        for_vectors(begin, end,
                    [&](int64_t i, int count) { store(load(x + i, count) * Vec::broadcast(factor), out + i, count); });
      });
      return QT_OK;
    });
  });
}

// Each piece of kElementChunk is summed in registers, the pieces in float64 in their order.
qt_status sum(qt_stream* stream, const qt_sum_args* args) {
  const int64_t pieces = ceil_div(args->x->elements, kElementChunk);
  double* partial = stream->scratch_of<double>(pieces + 1);
  if (!partial) return out_of_scratch(stream);
  return with_activation(stream, args->x->dtype, [&](auto zero) {
    const auto* x = data_of<const decltype(zero)>(args->x);
    for_chunks(stream, args->x->elements, kElementChunk, [&](int64_t begin, int64_t end) {
      constexpr int64_t kRun = 512;
      double total = 0;
      for (int64_t start = begin; start < end; start += kRun) {
        Vec lanes = Vec::zero();
        for_vectors(start, least(start + kRun, end), [&](int64_t i, int count) { lanes = lanes + load(x + i, count); });
        total += reduce_add(lanes);
      }
      partial[begin / kElementChunk] = total;
    });
    double total = 0;
    for (int64_t i = 0; i < pieces; i++) total += partial[i];
    float* out = data_of<float>(args->out);
    *out = static_cast<float>((args->accumulate ? static_cast<double>(*out) : 0.0) + args->factor * total);
    return QT_OK;
  });
}

qt_status gather_rows(qt_stream* stream, const qt_gather_rows_args* args) {
  const int64_t limit = rows_of(args->x), count = args->rows->elements;
  qt_status status = check_rows(stream, args->rows, limit, "x");
  if (status != QT_OK || count == 0) return status;
  const int64_t bytes = args->x->elements / limit * element_bytes(args->x->dtype);
  const int32_t* rows = data_of<const int32_t>(args->rows);
  for_chunks(stream, count, rows_per_task(bytes / 4), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      std::memcpy(data_of<char>(args->out) + r * bytes, data_of<const char>(args->x) + rows[r] * bytes, bytes);
    }
  });
  return QT_OK;
}

// Rows may repeat, so a task owns a range of columns and adds all rows to it in their order.
qt_status scatter_add_rows(qt_stream* stream, const qt_scatter_add_rows_args* args) {
  const int64_t limit = rows_of(args->out), count = args->rows->elements;
  qt_status status = check_rows(stream, args->rows, limit, "out");
  if (status != QT_OK || count == 0) return status;
  const int64_t width = args->out->elements / limit;
  const int32_t* rows = data_of<const int32_t>(args->rows);
  return with_activation(stream, args->out->dtype, [&](auto out_type) {
    return with_activation(stream, args->x->dtype, [&](auto x_type) {
      auto* out = data_of<decltype(out_type)>(args->out);
      const auto* x = data_of<const decltype(x_type)>(args->x);
      for_chunks(stream, width, 128, [&](int64_t begin, int64_t end) {
        for (int64_t r = 0; r < count; r++) {
          auto* to = out + rows[r] * width;
          const auto* from = x + r * width;
          for_vectors(begin, end, [&](int64_t i, int n) { store(load(to + i, n) + load(from + i, n), to + i, n); });
        }
      });
      return QT_OK;
    });
  });
}

qt_status append_column(qt_stream* stream, const qt_append_column_args* args) {
  const int64_t rows = rows_of(args->matrix), columns = last_of(args->matrix);
  const int64_t indices = args->index->elements;
  const int32_t* index = data_of<const int32_t>(args->index);
  for (int64_t i = 0; i < indices; i++) {
    if (index[i] >= 0 && index[i] < columns) continue;
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "index[%lld] is %d, expected 0 to %lld (the columns of matrix)",
                              static_cast<long long>(i), index[i], static_cast<long long>(columns - 1));
  }
  for (int64_t b = 0; b < rows; b++) {
    data_of<int32_t>(args->matrix)[b * columns + index[indices == 1 ? 0 : b]] = data_of<const int32_t>(args->values)[b];
  }
  return QT_OK;
}

qt_status increment(qt_stream*, const qt_increment_args* args) {
  int32_t* x = data_of<int32_t>(args->x);
  for (int64_t i = 0; i < args->x->elements; i++) x[i] += static_cast<int32_t>(args->by);
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
