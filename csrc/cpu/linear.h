// The pieces of a linear layer that `linear`, `linear_backward` and the loss share.
#pragma once
#include "int8.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// A weight of n outputs and k inputs, [n, k] or, transposed, [k, n]; with lora_a [r, k] and lora_b [n, r], or neither.
struct Linear {
  const qt_tensor *weight, *lora_a, *lora_b;
  bool transposed;
  float lora_scale;
  int64_t n, k;
  int compute;  // what the products compute as: the type of the activations

  Linear(const qt_tensor* weight, const qt_tensor* lora_a, const qt_tensor* lora_b, bool transposed, float lora_scale,
         int activation)
      : weight(weight),
        lora_a(lora_b ? lora_a : nullptr),
        lora_b(lora_b),
        transposed(transposed),
        lora_scale(lora_scale),
        n(weight->shape[transposed ? 1 : 0]),
        k(weight->shape[transposed ? 0 : 1]),
        compute(activation) {}
  int64_t rank() const { return lora_a->shape[0]; }
  Factor weight_rows() const {  // outer index: output
    return is_int8(weight) ? int8_outputs(weight) : transposed ? columns_of(weight) : rows_of(weight);
  }
  Factor weight_columns() const {  // outer index: input
    return is_int8(weight) ? int8_inputs(weight) : transposed ? rows_of(weight) : columns_of(weight);
  }
};

// The bias as float32, a copy in scratch memory where it is stored otherwise; null when there is no memory.
const float* float_bias(qt_stream* stream, const qt_tensor* bias);

// y [m, n]; h, if not null, receives lora_x Aᵀ.
qt_status linear_forward(qt_stream* stream, const Linear& w, Factor x, Factor lora_x, int64_t m, const Result& y, Result* h);
// dx = dy W + s t A, with t = dy B [m, r] or null.
qt_status linear_input_gradient(qt_stream* stream, const Linear& w, Factor dy, const float* t, int64_t m, const Result& dx);
// Weight gradients; factors with outer indices along the columns of x [m, k], dy [m, n], h = x Aᵀ [m, r].
qt_status linear_weight_gradient(qt_stream* stream, const Linear& w, const Factor& x, const Factor& dy, int64_t m, float* out,
                                 bool accumulate);
qt_status lora_a_gradient(qt_stream* stream, const Linear& w, const Factor& x, const float* t, int64_t m, float* out,
                          bool accumulate);
qt_status lora_b_gradient(qt_stream* stream, const Linear& w, const Factor& h, const Factor& dy, int64_t m, float* out,
                          bool accumulate);

}  // namespace quantune::cpu::QT_CPU_VARIANT
