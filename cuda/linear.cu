// y = x Wᵀ + bias + s (lora_x Aᵀ) Bᵀ and its gradients. The adapter's part is a second product into the same tiles of y.
#include "device/launch.h"
#include "device/shared.h"
#include "gemm_kernels.cuh"
#include "int8.cuh"
#include "kernels.h"
#include "linear.cuh"

namespace quantune::cuda {

namespace {

constexpr int kColumns = 32, kRows = 8;

// Partial column sums of x [m, n]: block (i, j) sums rows [i rows, (i + 1) rows) of 32 columns. Reads x once: bound by memory.
__global__ void __launch_bounds__(kColumns* kRows)
    column_sums_kernel(float* out, const void* x, int32_t dtype, int64_t m, int64_t n, int64_t rows, bool accumulate) {
  QT_SHARED(float, partial, kColumns* kRows);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x, first = blockIdx.y * rows;
  const int64_t end = first + rows < m ? first + rows : m;
  float sum = 0.0f;
  if (column < n)
    for (int64_t i = first + threadIdx.y; i < end; i += kRows) sum += load_float(x, dtype, i * n + column);
  partial[threadIdx.y * kColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= n) return;
  for (int i = 1; i < kRows; i++) sum += partial[i * kColumns + threadIdx.x];
  float* to = out + blockIdx.y * n + column;
  *to = accumulate ? *to + sum : sum;
}

}  // namespace

qt_status column_sums(qt_stream* stream, const void* x, int32_t dtype, int64_t m, int64_t n, float* out, bool accumulate) {
  const dim3 block(kColumns, kRows);
  const unsigned columns = static_cast<unsigned>(ceil_div<int64_t>(n, kColumns));
  const int64_t rows = 256, parts = ceil_div(m, rows);
  if (parts <= 1) return launch(column_sums_kernel, columns, block, 0, stream, out, x, dtype, m, n, rows, accumulate);
  float* partial = stream->scratch_of<float>(parts * n);
  if (!partial) return stream->out_of_scratch();
  const dim3 grid(columns, static_cast<unsigned>(parts));
  if (qt_status status = launch(column_sums_kernel, grid, block, 0, stream, partial, x, dtype, m, n, rows, false))
    return status;
  return launch(column_sums_kernel, columns, block, 0, stream, out, partial, QT_FLOAT32, parts, n, parts, accumulate);
}

qt_status linear_forward(qt_stream* stream, const Linear& w, Factor x, Factor lora_x, int64_t m, const Result& y,
                         const Result* h) {
  if (is_int8(w.weight)) return int8_forward(stream, w, x, lora_x, m, y, h);
  Product products[2] = {{x, w.weight_rows(), w.k, 1.0f}, {}};
  if (!w.lora_a) return gemm(stream, m, w.n, products, 1, y);
  Result own;
  if (!h) {
    const int32_t dtype = x.dtype;
    void* data = stream->scratch(m * w.rank() * (dtype == QT_FLOAT32 ? 4 : 2));
    if (!data) return stream->out_of_scratch();
    own = result_of(data, dtype, w.rank(), false);
    h = &own;
  }
  if (lora_x.data == x.data) {
    const Adapter adapter = {row_factor(w.lora_a), row_factor(w.lora_b), w.rank(), w.lora_scale, *h};
    return gemm_adapted(stream, m, w.n, products[0], adapter, y);
  }
  const Product down = {lora_x, row_factor(w.lora_a), w.k, 1.0f};
  if (qt_status status = gemm(stream, m, w.rank(), &down, 1, *h)) return status;
  products[1] = {row_factor(h->data, h->dtype, w.rank()), row_factor(w.lora_b), w.rank(), w.lora_scale};
  return gemm(stream, m, w.n, products, 2, y);
}

qt_status lora_up_gradient(qt_stream* stream, const Linear& w, Factor dy, int64_t m, const Result& t) {
  const Product up = {dy, column_factor(w.lora_b), w.n, 1.0f};
  return gemm(stream, m, w.rank(), &up, 1, t);
}

qt_status linear_input_gradient(qt_stream* stream, const Linear& w, Factor dy, const Result* t, int64_t m, const Result& dx) {
  if (is_int8(w.weight)) return int8_input_gradient(stream, w, dy, t, m, dx);
  const Product product = {dy, w.weight_columns(), w.n, 1.0f};
  if (!t) return gemm(stream, m, w.k, &product, 1, dx);
  const Adapter adapter = {column_factor(w.lora_b), column_factor(w.lora_a), w.rank(), w.lora_scale, *t};
  return gemm_adapted(stream, m, w.k, product, adapter, dx);
}

qt_status linear_weight_gradient(qt_stream* stream, const Linear& w, const Factor& x, const Factor& dy, int64_t m, float* out,
                                 bool accumulate) {
  const Product product = w.transposed ? Product{x, dy, m, 1.0f} : Product{dy, x, m, 1.0f};
  const int64_t rows = w.transposed ? w.k : w.n, columns = w.transposed ? w.n : w.k;
  return gemm(stream, rows, columns, &product, 1, result_of(out, QT_FLOAT32, columns, accumulate));
}

GroupedProduct lora_a_gradient(const Linear& w, const Factor& x, const Factor& t, int64_t m, float* out, bool accumulate) {
  // Its transpose, [k, rank]: the tiles are tall.
  return {w.k, w.rank(), {x, t, m, w.lora_scale}, {out, QT_FLOAT32, 1, w.k, accumulate, nullptr}};
}

GroupedProduct lora_b_gradient(const Linear& w, const Factor& h, const Factor& dy, int64_t m, float* out, bool accumulate) {
  return {w.n, w.rank(), {dy, h, m, w.lora_scale}, {out, QT_FLOAT32, w.rank(), 1, accumulate, nullptr}};
}

qt_status linear(qt_stream* stream, const qt_linear_args* args) {
  const Linear w(args->weight, args->lora_a, args->lora_b, args->transposed != 0, static_cast<float>(args->lora_scale));
  Result h;
  if (args->lora_h) h = result_of(args->lora_h, false);
  return linear_forward(stream, w, row_factor(args->x), row_factor(args->lora_x ? args->lora_x : args->x), rows_of(args->x),
                        result_of(args->y, false, args->bias), args->lora_h ? &h : nullptr);
}

namespace {

// d_lora_a and d_lora_b, which accumulate; t [m, r] = dy B in dy's dtype.
qt_status lora_gradients(qt_stream* stream, const qt_linear_backward_args* args, const Linear& w, const void* t, int64_t m) {
  const qt_tensor* lora_x = args->lora_x ? args->lora_x : args->x;
  GroupedProduct products[2];
  int count = 0;
  if (args->d_lora_a) {
    float* out = data_of<float>(args->d_lora_a);
    const Factor t_columns = column_factor(t, args->dy->dtype, w.rank());
    products[count++] = lora_a_gradient(w, column_factor(lora_x), t_columns, m, out, true);
  }
  if (args->d_lora_b) {
    Factor h;
    if (args->lora_h) {
      h = column_factor(args->lora_h);
    } else {
      void* data = stream->scratch(m * w.rank() * (lora_x->dtype == QT_FLOAT32 ? 4 : 2));
      if (!data) return stream->out_of_scratch();
      const Product down = {row_factor(lora_x), row_factor(w.lora_a), w.k, 1.0f};
      const Result result = result_of(data, lora_x->dtype, w.rank(), false);
      if (qt_status status = gemm(stream, m, w.rank(), &down, 1, result)) return status;
      h = column_factor(data, lora_x->dtype, w.rank());
    }
    products[count++] = lora_b_gradient(w, h, column_factor(args->dy), m, data_of<float>(args->d_lora_b), true);
  }
  return gemm_group(stream, products, count);
}

}  // namespace

qt_status linear_backward(qt_stream* stream, const qt_linear_backward_args* args) {
  const Linear w(args->weight, args->lora_a, args->lora_b, args->transposed != 0, static_cast<float>(args->lora_scale));
  const int64_t m = rows_of(args->dy);
  const Factor dy = row_factor(args->dy);
  Result t{};  // dy B, not scaled
  const bool joined = w.lora_a && args->dx && !args->lora_x;
  if (joined || (w.lora_a && (args->d_lora_x || args->d_lora_a))) {
    void* data = stream->scratch(m * w.rank() * (args->dy->dtype == QT_FLOAT32 ? 4 : 2) + 1);
    if (!data) return stream->out_of_scratch();
    t = result_of(data, args->dy->dtype, w.rank(), false);
    if (!joined)
      if (qt_status status = lora_up_gradient(stream, w, dy, m, t)) return status;
  }
  if (args->dx) {
    const Result dx = result_of(args->dx, args->accumulate != 0);
    if (qt_status status = linear_input_gradient(stream, w, dy, joined ? &t : nullptr, m, dx)) return status;
  }
  if (args->d_lora_x) {
    const Factor rows = row_factor(t.data, t.dtype, w.rank());
    const Product down = {rows, column_factor(w.lora_a), w.rank(), w.lora_scale};
    if (qt_status status = gemm(stream, m, w.k, &down, 1, result_of(args->d_lora_x, false))) return status;
  }
  if (args->d_weight) {
    float* out = data_of<float>(args->d_weight);
    const Factor x_columns = column_factor(args->x), dy_columns = column_factor(args->dy);
    if (qt_status status = linear_weight_gradient(stream, w, x_columns, dy_columns, m, out, true)) return status;
  }
  if (args->d_bias) {
    float* out = data_of<float>(args->d_bias);
    if (qt_status status = column_sums(stream, args->dy->data, args->dy->dtype, m, w.n, out, true)) return status;
  }
  return w.lora_a ? lora_gradients(stream, args, w, t.data, m) : QT_OK;
}

}  // namespace quantune::cuda
