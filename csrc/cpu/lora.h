// An adapter's narrow products, whose one side is its rank: rows are read once, as they lie, and nothing large is packed.
#pragma once
#include "linear.h"

namespace quantune::cpu::QT_CPU_VARIANT {

// Whether the functions below serve a rank; wider ones are left to the general product, which is fast for them.
constexpr int64_t most_narrow = 64;
inline bool is_narrow(int64_t rank) { return rank <= most_narrow; }

// h [m, r] = x bᵀ, for x of m rows and b of r rows (outer indices) of k elements. x is contiguous along k.
qt_status lora_down(qt_stream* stream, const Factor& x, const Factor& b, int64_t m, int64_t r, int64_t k, const Result& h);

// What the backward of an adapter computes from dy [m, n], in one pass over blocks of rows.
struct LoraBackward {
  const qt_tensor *dy, *x;  // [m, n] and [m, k], the adapter's input
  const qt_tensor* h;       // [m, r] = x Aᵀ, or null: computed again
  float* t;                 // receives dy B [m, r], not scaled; null when not asked for (then neither is d_a)
  float *d_a, *d_b;         // [r, k] += s tᵀ x, [n, r] += s dyᵀ h; either may be null
};
qt_status lora_backward(qt_stream* stream, const Linear& w, const LoraBackward& out);

}  // namespace quantune::cpu::QT_CPU_VARIANT
