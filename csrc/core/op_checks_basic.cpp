// Moving data, norms, rope, activations, optimizer, quantized weights.
#include "op_checks.h"

namespace quantune {
namespace {

#define N QT_OPERAND

Named item(const char* name, const qt_tensor_list* list, int64_t i) { return {name, list->items[i]}; }

}  // namespace

void check_operands(Check& c, const qt_fill_args& a) { c.dtype(N(out), kIsPlain); }

void check_operands(Check& c, const qt_fill_list_args& a) {
  for (int64_t i = 0; i < a.outs->count; i++) c.dtype(item("outs", a.outs, i), kIsPlain);
}

void check_operands(Check& c, const qt_copy_args& a) {
  c.dtype(N(out), kIsPlain).dtype(N(x), kIsPlain).same_size(N(out), N(x));
}

void check_operands(Check& c, const qt_add_args& a) {
  c.dtype(N(a), kIsActivation)
      .dtype(N(b), kIsActivation)
      .dtype(N(out), kIsActivation)
      .same_size(N(b), N(a))
      .same_size(N(out), N(a));
}

void check_operands(Check& c, const qt_scale_args& a) {
  c.dtype(N(x), kIsActivation).dtype(N(out), kIsActivation).same_size(N(out), N(x)).dtype(N(by), kIsFloat).elements(N(by), 1);
}

void check_operands(Check& c, const qt_sum_args& a) {
  c.dtype(N(x), kIsActivation).dtype(N(out), kIsFloat32).elements(N(out), 1);
}

void check_operands(Check& c, const qt_gather_rows_args& a) {
  c.dtype(N(x), kIsFloat | kIsInt32).same_dtype(N(out), N(x)).dtype(N(rows), kIsInt32);
  int64_t x_rows = N(x).dim(0), width = x_rows ? a.x->elements / x_rows : 0;
  c.that(a.x->ndim > 0, "x has no rows").that(a.rows->elements == 0 || x_rows > 0, "x has no rows to gather");
  c.elements(N(out), a.rows->elements * width);
}

void check_operands(Check& c, const qt_scatter_add_rows_args& a) {
  c.dtype(N(out), kIsActivation).dtype(N(x), kIsActivation).dtype(N(rows), kIsInt32);
  int64_t out_rows = N(out).dim(0), width = out_rows ? a.out->elements / out_rows : 0;
  c.that(a.out->ndim > 0, "out has no rows").elements(N(x), a.rows->elements * width);
}

void check_operands(Check& c, const qt_append_column_args& a) {
  c.dtype(N(matrix), kIsInt32).dtype(N(values), kIsInt32).dtype(N(index), kIsInt32);
  c.ndim(N(matrix), 2).elements(N(values), N(matrix).dim(0));
  if (!c.ok()) return;
  c.elements(N(index), a.index->elements == 1 ? 1 : N(matrix).dim(0));
}

void check_operands(Check& c, const qt_increment_args& a) { c.dtype(N(x), kIsInt32); }
void check_operands(Check& c, const qt_random_uniform_args& a) { c.dtype(N(out), kIsFloat); }
void check_operands(Check& c, const qt_random_normal_args& a) { c.dtype(N(out), kIsFloat); }

// ---- norms -----------------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_rms_norm_args& a) {
  Named x = N(x);
  c.dtype(x, kIsActivation).same_dtype(N(y), x).same_size(N(y), x);
  c.dtype(N(weight), kIsFloat).elements(N(weight), x.last()).dtype(N(rstd), kIsFloat32).elements(N(rstd), x.rows());
}

void check_operands(Check& c, const qt_rms_norm_backward_args& a) {
  Named x = N(x);
  c.dtype(x, kIsActivation).same_dtype(N(dy), x).same_size(N(dy), x).same_dtype(N(dx), x).same_size(N(dx), x);
  c.dtype(N(weight), kIsFloat).elements(N(weight), x.last()).dtype(N(rstd), kIsFloat32).elements(N(rstd), x.rows());
  c.dtype(N(d_weight), kIsFloat32).elements(N(d_weight), x.last());
}

void check_operands(Check& c, const qt_layer_norm_args& a) {
  Named x = N(x);
  c.dtype(x, kIsActivation).same_dtype(N(y), x).same_size(N(y), x);
  c.dtype(N(weight), kIsFloat).elements(N(weight), x.last()).dtype(N(bias), kIsFloat).elements(N(bias), x.last());
  c.dtype(N(mean), kIsFloat32).elements(N(mean), x.rows()).dtype(N(rstd), kIsFloat32).elements(N(rstd), x.rows());
}

void check_operands(Check& c, const qt_layer_norm_backward_args& a) {
  Named x = N(x);
  c.dtype(x, kIsActivation).same_dtype(N(dy), x).same_size(N(dy), x).same_dtype(N(dx), x).same_size(N(dx), x);
  c.dtype(N(weight), kIsFloat).elements(N(weight), x.last());
  c.dtype(N(mean), kIsFloat32).elements(N(mean), x.rows()).dtype(N(rstd), kIsFloat32).elements(N(rstd), x.rows());
  c.dtype(N(d_weight), kIsFloat32).elements(N(d_weight), x.last()).dtype(N(d_bias), kIsFloat32).elements(N(d_bias), x.last());
}

// ---- rope ------------------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_rope_table_args& a) {
  c.dtype(N(table), kIsFloat32).dtype(N(positions), kIsInt32).dtype(N(inv_freq), kIsFloat32);
  c.shape(N(table), {a.positions->elements, 2 * a.inv_freq->elements});
}

void check_operands(Check& c, const qt_rope_args& a) {
  c.dtype(N(x), kIsActivation).ndim(N(x), 3).same_dtype(N(y), N(x)).same_shape(N(y), N(x));
  c.dtype(N(table), kIsFloat32).shape(N(table), {N(x).dim(0), N(x).last()}).that(N(x).last() % 2 == 0, "the head size is odd");
}

// ---- activations -----------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_swiglu_args& a) {
  c.dtype(N(gate), kIsActivation).same_dtype(N(up), N(gate)).same_size(N(up), N(gate));
  c.same_dtype(N(y), N(gate)).same_size(N(y), N(gate));
}

void check_operands(Check& c, const qt_swiglu_backward_args& a) {
  c.dtype(N(dy), kIsActivation);
  for (Named x : {N(gate), N(up), N(d_gate), N(d_up)}) c.same_dtype(x, N(dy)).same_size(x, N(dy));
}

void check_operands(Check& c, const qt_activation_args& a) {
  c.dtype(N(x), kIsActivation).same_dtype(N(y), N(x)).same_size(N(y), N(x));
}

void check_operands(Check& c, const qt_activation_backward_args& a) {
  c.dtype(N(x), kIsActivation).same_dtype(N(dy), N(x)).same_size(N(dy), N(x)).same_dtype(N(dx), N(x)).same_size(N(dx), N(x));
}

void check_operands(Check& c, const qt_dropout_args& a) {
  c.dtype(N(x), kIsActivation).same_dtype(N(y), N(x)).same_size(N(y), N(x)).dtype(N(rng), kIsInt32).elements(N(rng), 4);
}

// ---- optimizer -------------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_grad_norm_args& a) {
  c.dtype(N(norm), kIsFloat32).elements(N(norm), 1);
  for (int64_t i = 0; i < a.grads->count; i++) c.dtype(item("grads", a.grads, i), kIsFloat32);
}

void check_operands(Check& c, const qt_adamw_args& a) {
  c.dtype(N(norm), kIsFloat32).elements(N(norm), 1).dtype(N(not_finite), kIsInt32).elements(N(not_finite), 1);
  int64_t count = a.params->count;
  c.that(a.grads->count == count && a.m->count == count && a.v->count == count,
         "params has " + std::to_string(count) + " tensors, grads " + std::to_string(a.grads->count) + ", m " +
             std::to_string(a.m->count) + ", v " + std::to_string(a.v->count));
  for (int64_t i = 0; c.ok() && i < count; i++) {
    Named param = item("params", a.params, i);
    c.dtype(param, kIsFloat32);
    for (Named x : {item("grads", a.grads, i), item("m", a.m, i), item("v", a.v, i)})
      c.dtype(x, kIsFloat32).same_size(x, param);
  }
}

// ---- quantized weights -----------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_quantize_args& a) {
  c.dtype(N(q), kIsQuantized).dtype(N(w), kIsFloat).same_size(N(w), N(q));
  if (a.q->dtype == QT_LLM_INT8) c.same_shape(N(w), N(q));
}
void check_operands(Check& c, const qt_dequantize_args& a) {
  c.dtype(N(q), kIsQuantized).dtype(N(w), kIsFloat).same_size(N(w), N(q));
  if (a.q->dtype == QT_LLM_INT8) c.same_shape(N(w), N(q));
}

namespace {

void check_parts(Check& c, Named q, Named codes, Named absmax, Named nested_absmax, Named nested_code) {
  c.dtype(q, kIsQuantized);
  if (!c.ok()) return;
  const qt_quant& quant = *q.tensor->quant;
  if (q.tensor->dtype == QT_LLM_INT8) {
    c.dtype(codes, kIsInt8).shape(codes, {quant.blocks, quant.block_size});
    c.dtype(absmax, kIsFloat32).elements(absmax, quant.blocks);
    c.that(!nested_absmax.tensor && !nested_code.tensor, "nested_absmax or nested_code is given, but the weight is llm_int8");
    return;
  }
  c.dtype(codes, kIsUint8);
  c.elements(codes, (q.tensor->elements + 1) / 2).elements(absmax, quant.blocks);
  c.dtype(absmax, quant.double_quant ? kIsUint8 : kIsFloat32);
  c.dtype(nested_absmax, kIsFloat32).elements(nested_absmax, (quant.blocks + 255) / 256);
  c.dtype(nested_code, kIsFloat32).elements(nested_code, 256).together(nested_absmax, nested_code);
  c.that((nested_absmax.tensor != nullptr) == (quant.double_quant != 0),
         quant.double_quant ? "a double quantized weight has nested_absmax and nested_code"
                            : "nested_absmax is given, but the weight is not double quantized");
}

}  // namespace

void check_operands(Check& c, const qt_quantized_load_args& a) {
  check_parts(c, N(q), N(codes), N(absmax), N(nested_absmax), N(nested_code));
}

void check_operands(Check& c, const qt_quantized_export_args& a) {
  check_parts(c, N(q), N(codes), N(absmax), N(nested_absmax), N(nested_code));
  c.dtype(N(offset), kIsFloat32).elements(N(offset), 1).together(N(offset), N(nested_absmax));
}

}  // namespace quantune
