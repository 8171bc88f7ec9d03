// y = x Wᵀ + bias + s (lora_x Aᵀ) Bᵀ and its gradients. The adapter's part is a second product into the same tiles of y.
#include "linear.h"

#include "lora.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

// out (+)= column sums of x [m, n].
void add_column_sums(qt_stream* stream, const qt_tensor* x, float* out, bool accumulate) {
  const int64_t m = row_count(x), n = column_count(x);
  constexpr int64_t block = 64;
  stream->parallel_for((n + block - 1) / block, [&](int64_t task) {
    const int64_t first = task * block, count = n - first < block ? n - first : block;
    float sums[block] = {};
    with_storage(x->dtype, [&](auto type) {
      const auto* from = static_cast<decltype(type)>(x->data) + first;
      for (int64_t i = 0; i < m; i++, from += n)
        for_each_vec(count, [&](int64_t j, int width) {
          Vec v = width == Vec::width ? Vec::load(from + j) : Vec::load_partial(from + j, width);
          (Vec::load(sums + j) + v).store(sums + j);
        });
    });
    for (int64_t j = 0; j < count; j++) out[first + j] = accumulate ? out[first + j] + sums[j] : sums[j];
  });
}

}  // namespace

const float* float_bias(qt_stream* stream, const qt_tensor* bias) {
  if (bias->dtype == QT_FLOAT32) return static_cast<const float*>(bias->data);
  float* copy = stream->scratch_of<float>(bias->elements);
  if (copy) widen(bias->data, bias->dtype, 0, bias->elements, copy);
  return copy;
}

qt_status linear_forward(qt_stream* stream, const Linear& w, Factor x, Factor lora_x, int64_t m, const Result& y, Result* h) {
  Product products[2] = {{x, w.weight_rows(), w.k, 1.0f}, {}};
  int compute = w.compute;
  if (is_int8(w.weight)) {
    if (qt_status status = int8_input(stream, x, m, w.k, w.weight->quant->threshold, &products[0].a)) return status;
    compute = QT_FLOAT32;  // in which the products of codes are exact
  }
  if (!w.lora_a) return gemm(stream, m, w.n, products, 1, y, compute);
  Result own;
  if (!h) {
    float* data = stream->scratch_of<float>(m * w.rank());
    if (!data) return out_of_scratch(stream, "linear");
    own = result_of(data, w.rank(), false);
    h = &own;
  }
  if (m > small_rows && is_narrow(w.rank()) && lora_x.k_stride == 1) {
    if (qt_status status = lora_down(stream, lora_x, rows_of(w.lora_a), m, w.rank(), w.k, *h)) return status;
  } else {
    const Product down = {lora_x, rows_of(w.lora_a), w.k, 1.0f};
    if (qt_status status = gemm(stream, m, w.rank(), &down, 1, *h, w.compute)) return status;
  }
  products[1] = {{h->data, h->dtype, nullptr, w.rank(), 1}, rows_of(w.lora_b), w.rank(), w.lora_scale};
  return gemm(stream, m, w.n, products, 2, y, compute);
}

qt_status linear_input_gradient(qt_stream* stream, const Linear& w, Factor dy, const float* t, int64_t m, const Result& dx) {
  Product products[2] = {{dy, w.weight_columns(), w.n, 1.0f}, {}};
  if (!t) return gemm(stream, m, w.k, products, 1, dx, w.compute);
  products[1] = {rows_of(t, w.rank()), columns_of(w.lora_a), w.rank(), w.lora_scale};
  return gemm(stream, m, w.k, products, 2, dx, w.compute);
}

qt_status linear_weight_gradient(qt_stream* stream, const Linear& w, const Factor& x, const Factor& dy, int64_t m, float* out,
                                 bool accumulate) {
  const Product product = w.transposed ? Product{x, dy, m, 1.0f} : Product{dy, x, m, 1.0f};
  const int64_t rows = w.transposed ? w.k : w.n, columns = w.transposed ? w.n : w.k;
  return gemm(stream, rows, columns, &product, 1, result_of(out, columns, accumulate), w.compute);
}

qt_status lora_a_gradient(qt_stream* stream, const Linear& w, const Factor& x, const float* t, int64_t m, float* out,
                          bool accumulate) {
  const Product product = {columns_of(t, w.rank()), x, m, w.lora_scale};
  return gemm(stream, w.rank(), w.k, &product, 1, result_of(out, w.k, accumulate), w.compute);
}

qt_status lora_b_gradient(qt_stream* stream, const Linear& w, const Factor& h, const Factor& dy, int64_t m, float* out,
                          bool accumulate) {
  // Its transpose, [rank, n]: wide rows suit the tiles better than narrow ones.
  const Product product = {h, dy, m, w.lora_scale};
  return gemm(stream, w.rank(), w.n, &product, 1, {out, QT_FLOAT32, 1, w.rank(), accumulate, nullptr}, w.compute);
}

qt_status linear(qt_stream* stream, const qt_linear_args* args) {
  const Linear w(args->weight, args->lora_a, args->lora_b, args->transposed != 0, static_cast<float>(args->lora_scale),
                 args->x->dtype);
  const int64_t m = row_count(args->x);
  const float* bias = nullptr;
  if (args->bias && !(bias = float_bias(stream, args->bias))) return out_of_scratch(stream, "linear");
  Result h;
  if (args->lora_h) h = result_of(args->lora_h, false);
  return linear_forward(stream, w, rows_of(args->x), rows_of(args->lora_x ? args->lora_x : args->x), m,
                        result_of(args->y, false, bias), args->lora_h ? &h : nullptr);
}

qt_status linear_backward(qt_stream* stream, const qt_linear_backward_args* args) {
  const Linear w(args->weight, args->lora_a, args->lora_b, args->transposed != 0, static_cast<float>(args->lora_scale),
                 args->dy->dtype);
  const int64_t m = row_count(args->dy);
  const Factor dy = rows_of(args->dy);
  const qt_tensor* lora_x = args->lora_x ? args->lora_x : args->x;
  const bool narrow = w.lora_a && is_narrow(w.rank());
  float* t = nullptr;  // dy B, not scaled
  if (w.lora_a && (args->dx || args->d_lora_x || args->d_lora_a)) {
    t = stream->scratch_of<float>(m * w.rank());
    if (!t) return out_of_scratch(stream, "linear_backward");
  }
  if (narrow) {
    float* d_a = args->d_lora_a ? static_cast<float*>(args->d_lora_a->data) : nullptr;
    float* d_b = args->d_lora_b ? static_cast<float*>(args->d_lora_b->data) : nullptr;
    if (qt_status status = lora_backward(stream, w, {args->dy, lora_x, args->lora_h, t, d_a, d_b})) return status;
  } else if (t) {
    const Product up = {dy, columns_of(w.lora_b), w.n, 1.0f};
    if (qt_status status = gemm(stream, m, w.rank(), &up, 1, result_of(t, w.rank(), false), w.compute)) return status;
  }
  if (args->dx) {
    const Result dx = result_of(args->dx, args->accumulate != 0);
    if (qt_status status = linear_input_gradient(stream, w, dy, args->lora_x ? nullptr : t, m, dx)) return status;
  }
  if (args->d_lora_x) {
    const Product down = {rows_of(t, w.rank()), columns_of(w.lora_a), w.rank(), w.lora_scale};
    if (qt_status status = gemm(stream, m, w.k, &down, 1, result_of(args->d_lora_x, false), w.compute)) return status;
  }
  if (args->d_weight) {
    float* out = static_cast<float*>(args->d_weight->data);
    if (qt_status status = linear_weight_gradient(stream, w, columns_of(args->x), columns_of(args->dy), m, out, true))
      return status;
  }
  if (args->d_bias) add_column_sums(stream, args->dy, static_cast<float*>(args->d_bias->data), true);
  if (args->d_lora_a && !narrow) {
    float* out = static_cast<float*>(args->d_lora_a->data);
    if (qt_status status = lora_a_gradient(stream, w, columns_of(lora_x), t, m, out, true)) return status;
  }
  if (args->d_lora_b && !narrow) {
    Factor h;
    if (args->lora_h) {
      h = columns_of(args->lora_h);
    } else {
      float* data = stream->scratch_of<float>(m * w.rank());
      if (!data) return out_of_scratch(stream, "linear_backward");
      const Product down = {rows_of(lora_x), rows_of(w.lora_a), w.k, 1.0f};
      if (qt_status status = gemm(stream, m, w.rank(), &down, 1, result_of(data, w.rank(), false), w.compute)) return status;
      h = columns_of(data, w.rank());
    }
    float* out = static_cast<float*>(args->d_lora_b->data);
    if (qt_status status = lora_b_gradient(stream, w, h, columns_of(args->dy), m, out, true)) return status;
  }
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
