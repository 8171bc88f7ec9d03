// The pieces of a linear layer that `linear`, `linear_backward` and the loss share.
#pragma once
#include "gemm.cuh"

namespace quantune::cuda {

// A weight of n outputs and k inputs, [n, k] or, transposed, [k, n]; with lora_a [r, k] and lora_b [n, r], or neither.
struct Linear {
  const qt_tensor *weight, *lora_a, *lora_b;
  bool transposed;
  float lora_scale;
  int64_t n, k;

  Linear(const qt_tensor* weight, const qt_tensor* lora_a, const qt_tensor* lora_b, bool transposed, float lora_scale)
      : weight(weight),
        lora_a(lora_b ? lora_a : nullptr),
        lora_b(lora_b),
        transposed(transposed),
        lora_scale(lora_scale),
        n(weight->shape[transposed ? 1 : 0]),
        k(weight->shape[transposed ? 0 : 1]) {}
  int64_t rank() const { return lora_a ? lora_a->shape[0] : 0; }
  Factor weight_rows() const { return transposed ? column_factor(weight) : row_factor(weight); }     // outer index: output
  Factor weight_columns() const { return transposed ? row_factor(weight) : column_factor(weight); }  // outer index: input
};

// y [m, n]; h, if not null, receives lora_x Aᵀ [m, r].
qt_status linear_forward(qt_stream* stream, const Linear& w, Factor x, Factor lora_x, int64_t m, const Result& y,
                         const Result* h);
// t = dy B [m, r].
qt_status lora_up_gradient(qt_stream* stream, const Linear& w, Factor dy, int64_t m, const Result& t);
// dx = dy W, and with t, which receives dy B, + s t A.
qt_status linear_input_gradient(qt_stream* stream, const Linear& w, Factor dy, const Result* t, int64_t m, const Result& dx);
// Weight gradients, float32; factors whose outer indices are the columns of x [m, k], dy [m, n], t and h = x Aᵀ [m, r].
qt_status linear_weight_gradient(qt_stream* stream, const Linear& w, const Factor& x, const Factor& dy, int64_t m, float* out,
                                 bool accumulate);
GroupedProduct lora_a_gradient(const Linear& w, const Factor& x, const Factor& t, int64_t m, float* out, bool accumulate);
GroupedProduct lora_b_gradient(const Linear& w, const Factor& h, const Factor& dy, int64_t m, float* out, bool accumulate);
// out [n] (+)= column sums of x [m, n], float32 or bfloat16, in a fixed order.
qt_status column_sums(qt_stream* stream, const void* x, int32_t dtype, int64_t m, int64_t n, float* out, bool accumulate);

}  // namespace quantune::cuda
