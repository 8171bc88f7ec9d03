// Element-wise activations and their gradients.
#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

inline Vec constant(float x) { return Vec::broadcast(x); }

// erf as the ratio of two odd/even polynomials on [-4, 4] (Eigen's float approximation, a few ulp).
inline Vec erf(Vec x) {
  x = max(min(x, constant(4.0f)), constant(-4.0f));
  Vec s = x * x;
  Vec p = constant(-2.72614225801306e-10f);
  p = fma(p, s, constant(2.77068142495902e-08f));
  p = fma(p, s, constant(-2.10102402082508e-06f));
  p = fma(p, s, constant(-5.69250639462346e-05f));
  p = fma(p, s, constant(-7.34990630326855e-04f));
  p = fma(p, s, constant(-2.95459980854025e-03f));
  p = fma(p, s, constant(-1.60960333262415e-02f));
  Vec q = constant(-1.45660718464996e-05f);
  q = fma(q, s, constant(-2.13374055278905e-04f));
  q = fma(q, s, constant(-1.68282697438203e-03f));
  q = fma(q, s, constant(-7.37332916720468e-03f));
  q = fma(q, s, constant(-1.42647390514189e-02f));
  return x * p / q;
}

// Each kind has its value and its derivative.
struct GeluTanh {                                  // x (1 + tanh u) / 2 = x sigmoid(2 u), u = √(2/π) (x + 0.044715 x³)
  static constexpr float k = 1.5957691216057308f;  // 2 √(2/π)
  static Vec gate(Vec x) { return sigmoid(x * constant(k) * fma(x * x, constant(0.044715f), constant(1.0f))); }
  static Vec value(Vec x) { return x * gate(x); }
  static Vec derivative(Vec x) {
    Vec s = gate(x), slope = constant(k) * fma(x * x, constant(3 * 0.044715f), constant(1.0f));
    return fma(x * slope, s * (constant(1.0f) - s), s);
  }
};
struct GeluErf {
  static Vec cdf(Vec x) { return fma(constant(0.5f), erf(x * constant(0.70710678118654752f)), constant(0.5f)); }
  static Vec value(Vec x) { return x * cdf(x); }
  static Vec derivative(Vec x) { return fma(x * constant(0.3989422804014327f), exp(x * x * constant(-0.5f)), cdf(x)); }
};
struct Silu {
  static Vec value(Vec x) { return x * sigmoid(x); }
  static Vec derivative(Vec x) {
    Vec s = sigmoid(x);
    return fma(x * s, constant(1.0f) - s, s);
  }
};
struct Relu {
  static Vec value(Vec x) { return max(x, Vec::zero()); }
  static Vec derivative(Vec x) { return select_less(Vec::zero(), x, constant(1.0f), Vec::zero()); }
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
      return stream->host->fail(stream, QT_INVALID_ARGUMENT,
                                "kind is %lld, expected 0 (gelu_new), 1 (gelu), 2 (silu) or 3 (relu)",
                                static_cast<long long>(kind));
  }
}

// body(i, count) over n elements in parallel.
template <class Body>
qt_status for_elements(qt_stream* stream, int64_t n, const Body& body) {
  for_chunks(stream, n, kElementChunk, [&](int64_t begin, int64_t end) { for_vectors(begin, end, body); });
  return QT_OK;
}

}  // namespace

qt_status swiglu(qt_stream* stream, const qt_swiglu_args* args) {
  return with_activation(stream, args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = data_of<T>(args->y);
    const T *gate = data_of<const T>(args->gate), *up = data_of<const T>(args->up);
    return for_elements(stream, args->y->elements,
                        [=](int64_t i, int n) { store(Silu::value(load(gate + i, n)) * load(up + i, n), y + i, n); });
  });
}

qt_status swiglu_backward(qt_stream* stream, const qt_swiglu_backward_args* args) {
  return with_activation(stream, args->dy->dtype, [&](auto zero) {
    using T = decltype(zero);
    T *d_gate = data_of<T>(args->d_gate), *d_up = data_of<T>(args->d_up);
    const T *dy = data_of<const T>(args->dy), *gate = data_of<const T>(args->gate), *up = data_of<const T>(args->up);
    return for_elements(stream, args->dy->elements, [=](int64_t i, int n) {
      Vec d = load(dy + i, n), g = load(gate + i, n), u = load(up + i, n), s = sigmoid(g);
      Vec silu = g * s, slope = fma(silu, constant(1.0f) - s, s);
      store(d * u * slope, d_gate + i, n);
      store(d * silu, d_up + i, n);
    });
  });
}

qt_status activation(qt_stream* stream, const qt_activation_args* args) {
  return with_activation(stream, args->y->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = data_of<T>(args->y);
    const T* x = data_of<const T>(args->x);
    return with_kind(stream, args->kind, [&](auto kind) {
      using Kind = decltype(kind);
      return for_elements(stream, args->y->elements, [=](int64_t i, int n) { store(Kind::value(load(x + i, n)), y + i, n); });
    });
  });
}

qt_status activation_backward(qt_stream* stream, const qt_activation_backward_args* args) {
  return with_activation(stream, args->dy->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* dx = data_of<T>(args->dx);
    const T *dy = data_of<const T>(args->dy), *x = data_of<const T>(args->x);
    return with_kind(stream, args->kind, [&](auto kind) {
      using Kind = decltype(kind);
      return for_elements(stream, args->dy->elements,
                          [=](int64_t i, int n) { store(load(dy + i, n) * Kind::derivative(load(x + i, n)), dx + i, n); });
    });
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
