// What the kernel files share: choosing the storage type, splitting work by shape, whole and partial vectors.
#pragma once
#include "kernels.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// Calls f with a value of the storage type: float32 or bfloat16 (activations), or float16 too (weights).
template <class F>
qt_status with_activation(qt_stream* stream, int32_t dtype, const F& f) {
  if (dtype == QT_FLOAT32) return f(float{});
  if (dtype == QT_BFLOAT16) return f(bfloat16{});
  return stream->host->fail(stream, QT_INVALID_ARGUMENT, "expected float32 or bfloat16");
}
template <class F>
qt_status with_float(qt_stream* stream, int32_t dtype, const F& f) {
  if (dtype == QT_FLOAT16) return f(float16{});
  return with_activation(stream, dtype, f);
}

inline qt_status out_of_scratch(qt_stream* stream) {
  return stream->host->fail(stream, QT_OUT_OF_MEMORY, "no memory for scratch space");
}

template <class T>
T* data_of(const qt_tensor* tensor) {
  return tensor ? static_cast<T*>(tensor->data) : nullptr;
}

inline int64_t rows_of(const qt_tensor* tensor) { return tensor->ndim ? tensor->shape[0] : 1; }
inline int64_t last_of(const qt_tensor* tensor) { return tensor->ndim ? tensor->shape[tensor->ndim - 1] : 1; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
inline Vec load(const T* p, int count) {
  return count == Vec::width ? Vec::load(p) : Vec::load_partial(p, count);
}
template <class T>
inline void store(Vec v, T* p, int count) {
  if (count == Vec::width)
    v.store(p);
  else
    v.store_partial(p, count);
}

// body(begin, end) over [0, n) in pieces of `chunk`, in parallel.
template <class Body>
void for_chunks(qt_stream* stream, int64_t n, int64_t chunk, const Body& body) {
  stream->parallel_for(ceil_div(n, chunk), [&](int64_t task) { body(task * chunk, least(n, (task + 1) * chunk)); });
}
constexpr int64_t kElementChunk = 16384;

// How many rows of `width` elements make a task worth its dispatch.
inline int64_t rows_per_task(int64_t width) { return width >= kElementChunk ? 1 : ceil_div(kElementChunk, width ? width : 1); }

// body(i, count) with whole vectors and a rest, over the elements [begin, end).
template <class Body>
inline void for_vectors(int64_t begin, int64_t end, const Body& body) {
  for_each_vec(end - begin, [&](int64_t i, int count) { body(begin + i, count); });
}

// The tensor's values as float32: its own memory, or a converted copy in scratch memory. Null when out of memory.
inline const float* as_float32(qt_stream* stream, const qt_tensor* tensor) {
  if (tensor->dtype == QT_FLOAT32) return data_of<const float>(tensor);
  float* copy = stream->scratch_of<float>(tensor->elements);
  if (!copy) return nullptr;
  with_float(stream, tensor->dtype, [&](auto zero) {
    const auto* from = data_of<const decltype(zero)>(tensor);
    for_each_vec(tensor->elements, [&](int64_t i, int count) { store(load(from + i, count), copy + i, count); });
    return QT_OK;
  });
  return copy;
}

// Runs body(tensor index, begin, end, task) over all elements of a list of tensors, cut into equal pieces of their
// concatenation, so that hundreds of small tensors need few tasks and one large tensor many.
template <class Body>
qt_status for_list(qt_stream* stream, const qt_tensor_list* list, int64_t chunk, const Body& body) {
  int64_t* starts = stream->scratch_of<int64_t>(list->count + 1);
  if (!starts) return out_of_scratch(stream);
  starts[0] = 0;
  for (int64_t i = 0; i < list->count; i++) starts[i + 1] = starts[i] + list->items[i]->elements;
  for_chunks(stream, starts[list->count], chunk, [&](int64_t begin, int64_t end) {
    int64_t low = 0, high = list->count;  // the last tensor that starts at or before `begin`
    while (high - low > 1) (starts[(low + high) / 2] <= begin ? low : high) = (low + high) / 2;
    for (int64_t i = low; i < list->count && starts[i] < end; i++) {
      int64_t from = begin > starts[i] ? begin - starts[i] : 0, to = least(end, starts[i + 1]) - starts[i];
      if (from < to) body(i, from, to, begin / chunk);
    }
  });
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
