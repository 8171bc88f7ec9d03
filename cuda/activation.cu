// Element-wise activations and their gradients: bound by memory, two or three operands read and one or two written.
#include "elements.cuh"

namespace quantune::cuda {
namespace {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Each kind has its value and its derivative.
struct GeluTanh {                                  // x (1 + tanh u) / 2 = x sigmoid(2 u), u = √(2/π) (x + 0.044715 x³)
  static constexpr float k = 1.5957691216057308f;  // 2 √(2/π)
  static __device__ float gate(float x) { return sigmoid(x * k * fmaf(x * x, 0.044715f, 1.0f)); }
  static __device__ float value(float x) { return x * gate(x); }
  static __device__ float derivative(float x) {
    const float s = gate(x), slope = k * fmaf(x * x, 3 * 0.044715f, 1.0f);
    return fmaf(x * slope, s * (1.0f - s), s);
  }
};
struct GeluErf {
  static __device__ float cdf(float x) { return fmaf(0.5f, erff(x * 0.70710678118654752f), 0.5f); }
  static __device__ float value(float x) { return x * cdf(x); }
  static __device__ float derivative(float x) { return fmaf(x * 0.3989422804014327f, expf(x * x * -0.5f), cdf(x)); }
};
struct Silu {
  static __device__ float value(float x) { return x * sigmoid(x); }
  static __device__ float derivative(float x) {
    const float s = sigmoid(x);
    return fmaf(x * s, 1.0f - s, s);
  }
};
struct Relu {
  static __device__ float value(float x) { return x > 0 ? x : 0.0f; }
  static __device__ float derivative(float x) { return x > 0 ? 1.0f : 0.0f; }
};

template <class F>
qt_status with_kind(qt_stream* stream, int64_t kind, const F& f) {
  switch (kind) {
    case 0:
      return f(GeluTanh{});
    case 1:
      return f(GeluErf{});
    case 2:
      return f(Silu{});
    case 3:
      return f(Relu{});
    default:
      return stream->fail(QT_INVALID_ARGUMENT, "kind is %lld, expected 0 (gelu_new), 1 (gelu), 2 (silu) or 3 (relu)",
                          static_cast<long long>(kind));
  }
}

template <class T>
struct Swiglu {
  T* y;
  const T *gate, *up;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    Float8 g = load8(gate + i, count, aligned);
    const Float8 u = load8(up + i, count, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) g.v[j] = Silu::value(g.v[j]) * u.v[j];
    store8(y + i, g, count, aligned);
  }
};

template <class T>
struct SwigluBackward {
  T *d_gate, *d_up;
  const T *dy, *gate, *up;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    const Float8 d = load8(dy + i, count, aligned);
    Float8 g = load8(gate + i, count, aligned), u = load8(up + i, count, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) {
      const float s = sigmoid(g.v[j]), silu = g.v[j] * s, slope = fmaf(silu, 1.0f - s, s);
      g.v[j] = d.v[j] * u.v[j] * slope;
      u.v[j] = d.v[j] * silu;
    }
    store8(d_gate + i, g, count, aligned);
    store8(d_up + i, u, count, aligned);
  }
};

template <class T, class Kind>
struct Activation {
  T* y;
  const T* x;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    Float8 v = load8(x + i, count, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) v.v[j] = Kind::value(v.v[j]);
    store8(y + i, v, count, aligned);
  }
};

template <class T, class Kind>
struct ActivationBackward {
  T* dx;
  const T *dy, *x;
  bool aligned;
  __device__ void operator()(int64_t i, int64_t count) const {
    Float8 d = load8(dy + i, count, aligned);
    const Float8 v = load8(x + i, count, aligned);
#pragma unroll
    for (int j = 0; j < kEight; j++) d.v[j] *= Kind::derivative(v.v[j]);
    store8(dx + i, d, count, aligned);
  }
};

}  // namespace

qt_status swiglu(qt_stream* stream, const qt_swiglu_args* args) {
  return with_activation(args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned = all_aligned(args->y->data, args->gate->data, args->up->data);
    return for_elements(stream, args->y->elements,
                        Swiglu<T>{data_of<T>(args->y), data_of<const T>(args->gate), data_of<const T>(args->up), aligned});
  });
}

qt_status swiglu_backward(qt_stream* stream, const qt_swiglu_backward_args* args) {
  return with_activation(args->dy->dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool aligned = all_aligned(args->d_gate->data, args->d_up->data, args->dy->data, args->gate->data, args->up->data);
    return for_elements(stream, args->dy->elements,
                        SwigluBackward<T>{data_of<T>(args->d_gate), data_of<T>(args->d_up), data_of<const T>(args->dy),
                                          data_of<const T>(args->gate), data_of<const T>(args->up), aligned});
  });
}

qt_status activation(qt_stream* stream, const qt_activation_args* args) {
  return with_activation(args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    return with_kind(stream, args->kind, [&](auto kind) {
      const bool aligned = all_aligned(args->y->data, args->x->data);
      return for_elements(stream, args->y->elements,
                          Activation<T, decltype(kind)>{data_of<T>(args->y), data_of<const T>(args->x), aligned});
    });
  });
}

qt_status activation_backward(qt_stream* stream, const qt_activation_backward_args* args) {
  return with_activation(args->dy->dtype, [&](auto zero) {
    using T = decltype(zero);
    return with_kind(stream, args->kind, [&](auto kind) {
      const bool aligned = all_aligned(args->dx->data, args->dy->data, args->x->data);
      return for_elements(stream, args->dy->elements,
                          ActivationBackward<T, decltype(kind)>{data_of<T>(args->dx), data_of<const T>(args->dy),
                                                                data_of<const T>(args->x), aligned});
    });
  });
}

}  // namespace quantune::cuda
