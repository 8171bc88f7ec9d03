// Embedding, matrix products, attention, choosing tokens.
#include "op_checks.h"

namespace quantune {
namespace {

#define N QT_OPERAND

struct WeightSize {
  int64_t n, k;
};

// A weight [N, K], or [K, N] when transposed.
WeightSize check_weight(Check& c, Named weight, int64_t transposed) {
  c.dtype(weight, kIsFloat | kIsQuantized).ndim(weight, 2);
  int64_t rows = weight.dim(0), columns = weight.dim(1);
  if (weight.tensor->dtype == QT_LLM_INT8) {
    constexpr int64_t most = INT32_MAX / (127 * 127);  // inputs of which the sum fits
    c.that(weight.tensor->quant->transposed == (transposed != 0), "the weight was quantized for the other orientation");
    c.that(weight.tensor->quant->block_size <= most, "an llm_int8 weight has at most " + std::to_string(most) + " inputs");
  }
  return transposed ? WeightSize{columns, rows} : WeightSize{rows, columns};
}

// A [r, K] and B [N, r].
void check_lora(Check& c, Named a, Named b, WeightSize w) {
  c.together(a, b).dtype(a, kIsFloat).dtype(b, kIsFloat).ndim(a, 2).ndim(b, 2);
  if (!c.ok() || !a.tensor) return;
  c.shape(a, {a.dim(0), w.k}).shape(b, {w.n, a.dim(0)});
}

void check_weight_gradients(Check& c, Named d_weight, Named weight, Named d_bias, int64_t n) {
  c.dtype(d_weight, kIsFloat32).same_shape(d_weight, weight).dtype(d_bias, kIsFloat32).elements(d_bias, n);
  if (d_weight.tensor) c.dtype(weight, kIsFloat);
}

}  // namespace

// ---- embedding -------------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_embedding_args& a) {
  c.dtype(N(ids), kIsInt32).dtype(N(table), kIsFloat).ndim(N(table), 2).dtype(N(y), kIsActivation);
  c.elements(N(y), a.ids->elements * N(table).dim(1))
      .together(N(rows), N(row_of))
      .dtype(N(row_of), kIsInt32)
      .dtype(N(rows), kIsFloat);
  if (c.ok() && a.rows) c.ndim(N(rows), 2).shape(N(rows), {N(rows).dim(0), N(table).dim(1)});
}

void check_operands(Check& c, const qt_embedding_backward_args& a) {
  c.dtype(N(ids), kIsInt32).dtype(N(dy), kIsActivation).dtype(N(d_table), kIsFloat32).dtype(N(d_rows), kIsFloat32);
  c.dtype(N(row_of), kIsInt32).needs(N(d_rows), N(row_of)).ndim(N(d_table), 2).ndim(N(d_rows), 2);
  int64_t width = N(dy).last();
  c.elements(N(dy), a.ids->elements * width);
  for (Named gradient : {N(d_table), N(d_rows)}) {
    if (c.ok() && gradient.tensor) c.shape(gradient, {gradient.dim(0), width});
  }
}

// ---- matrix products -------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_matmul_args& a) {
  c.dtype(N(a), kIsFloat | kIsFourBit)
      .dtype(N(b), kIsFloat | kIsFourBit)
      .dtype(N(c), kIsFloat)
      .ndim(N(a), 2)
      .ndim(N(b), 2)
      .ndim(N(c), 2);
  int64_t m = N(a).dim(a.transpose_a ? 1 : 0), k = N(a).dim(a.transpose_a ? 0 : 1);
  int64_t k_of_b = N(b).dim(a.transpose_b ? 1 : 0), n = N(b).dim(a.transpose_b ? 0 : 1);
  c.that(k == k_of_b, "a " + shape_text(a.a) + (a.transpose_a ? " transposed" : "") + " and b " + shape_text(a.b) +
                          (a.transpose_b ? " transposed" : "") + " have no common inner dimension");
  c.shape(N(c), {m, n});
}

void check_operands(Check& c, const qt_linear_args& a) {
  c.dtype(N(x), kIsActivation).ndim(N(x), 2);
  WeightSize w = check_weight(c, N(weight), a.transposed);
  int64_t m = N(x).dim(0);
  c.shape(N(x), {m, w.k}).dtype(N(y), kIsActivation).shape(N(y), {m, w.n}).dtype(N(bias), kIsFloat).elements(N(bias), w.n);
  check_lora(c, N(lora_a), N(lora_b), w);
  c.needs(N(lora_x), N(lora_a)).same_dtype(N(lora_x), N(x)).same_shape(N(lora_x), N(x));
  c.needs(N(lora_h), N(lora_a)).dtype(N(lora_h), kIsActivation);
  if (c.ok() && a.lora_a) c.shape(N(lora_h), {m, N(lora_a).dim(0)});
}

void check_operands(Check& c, const qt_linear_backward_args& a) {
  c.dtype(N(x), kIsActivation).ndim(N(x), 2).dtype(N(dy), kIsActivation);
  WeightSize w = check_weight(c, N(weight), a.transposed);
  int64_t m = N(x).dim(0);
  c.shape(N(x), {m, w.k}).shape(N(dy), {m, w.n}).dtype(N(dx), kIsActivation).same_shape(N(dx), N(x));
  check_weight_gradients(c, N(d_weight), N(weight), N(d_bias), w.n);
  check_lora(c, N(lora_a), N(lora_b), w);
  c.needs(N(lora_x), N(lora_a)).same_dtype(N(lora_x), N(x)).same_shape(N(lora_x), N(x));
  c.needs(N(d_lora_x), N(lora_x)).dtype(N(d_lora_x), kIsActivation).same_shape(N(d_lora_x), N(x));
  c.needs(N(d_lora_a), N(lora_a)).dtype(N(d_lora_a), kIsFloat32).same_shape(N(d_lora_a), N(lora_a));
  c.needs(N(d_lora_b), N(lora_b)).dtype(N(d_lora_b), kIsFloat32).same_shape(N(d_lora_b), N(lora_b));
  c.needs(N(lora_h), N(lora_a)).dtype(N(lora_h), kIsActivation);
  if (c.ok() && a.lora_a) c.shape(N(lora_h), {m, N(lora_a).dim(0)});
}

void check_operands(Check& c, const qt_linear_cross_entropy_args& a) {
  c.dtype(N(x), kIsActivation).ndim(N(x), 2);
  WeightSize w = check_weight(c, N(weight), a.transposed);
  c.shape(N(x), {N(x).dim(0), w.k})
      .same_dtype(N(dx), N(x))
      .same_shape(N(dx), N(x))
      .dtype(N(bias), kIsFloat)
      .elements(N(bias), w.n);
  check_weight_gradients(c, N(d_weight), N(weight), N(d_bias), w.n);
  check_lora(c, N(lora_a), N(lora_b), w);
  c.needs(N(d_lora_a), N(lora_a)).dtype(N(d_lora_a), kIsFloat32).same_shape(N(d_lora_a), N(lora_a));
  c.needs(N(d_lora_b), N(lora_b)).dtype(N(d_lora_b), kIsFloat32).same_shape(N(d_lora_b), N(lora_b));
  c.dtype(N(targets), kIsInt32).dtype(N(target_rows), kIsInt32).same_size(N(target_rows), N(targets));
  c.dtype(N(losses), kIsFloat32).elements(N(losses), a.targets->elements);
}

// ---- attention -------------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_attention_plan_args& a) {
  c.dtype(N(plan), kIsInt32).dtype(N(rows), kIsInt32).dtype(N(end), kIsInt32).elements(N(rows), a.queries);
  c.that(a.queries >= 0, "queries is " + std::to_string(a.queries));
  if (!a.rows) c.that(a.queries <= a.end->elements, "there are more queries than keys, and no rows that place them");
}

namespace {

void check_attention(Check& c, Named q, Named k, Named v, Named rows, Named end, Named plan) {
  c.dtype(q, kIsActivation).ndim(q, 3).same_dtype(k, q).ndim(k, 3).same_dtype(v, q).same_shape(v, k);
  c.that(q.last() == k.last(), "q " + shape_text(q.tensor) + " and k " + shape_text(k.tensor) + " differ in head size");
  c.that(k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
         "the heads of q " + shape_text(q.tensor) + " are no multiple of those of k " + shape_text(k.tensor));
  c.dtype(rows, kIsInt32).elements(rows, q.dim(0)).dtype(end, kIsInt32).elements(end, k.dim(0)).dtype(plan, kIsInt32);
  if (!rows.tensor) c.that(q.dim(0) <= k.dim(0), "there are more queries than keys, and no rows that place them");
}

}  // namespace

void check_operands(Check& c, const qt_attention_args& a) {
  check_attention(c, N(q), N(k), N(v), N(rows), N(end), N(plan));
  c.same_dtype(N(o), N(q)).same_shape(N(o), N(q)).dtype(N(lse), kIsFloat32).elements(N(lse), N(q).dim(0) * N(q).dim(1));
}

void check_operands(Check& c, const qt_attention_backward_args& a) {
  check_attention(c, N(q), N(k), N(v), N(rows), N(end), N(plan));
  for (Named x : {N(d_o), N(o), N(dq)}) c.same_dtype(x, N(q)).same_shape(x, N(q));
  for (Named x : {N(dk), N(dv)}) c.dtype(x, kIsFloat32).same_shape(x, N(k));
  c.dtype(N(lse), kIsFloat32).elements(N(lse), N(q).dim(0) * N(q).dim(1));
}

void check_operands(Check& c, const qt_kv_write_args& a) {
  c.dtype(N(k_cache), kIsActivation).ndim(N(k_cache), 4).same_dtype(N(v_cache), N(k_cache)).same_shape(N(v_cache), N(k_cache));
  c.dtype(N(slots), kIsInt32).dtype(N(k), kIsActivation).same_dtype(N(v), N(k)).same_shape(N(v), N(k));
  c.shape(N(k), {a.slots->elements, N(k_cache).dim(2), N(k_cache).dim(3)});
}

void check_operands(Check& c, const qt_attention_decode_args& a) {
  c.dtype(N(q), kIsActivation).ndim(N(q), 3).same_dtype(N(o), N(q)).same_shape(N(o), N(q));
  c.dtype(N(k_cache), kIsActivation).ndim(N(k_cache), 4).same_dtype(N(v_cache), N(k_cache)).same_shape(N(v_cache), N(k_cache));
  c.same_dtype(N(k_steps), N(k_cache))
      .ndim(N(k_steps), 4)
      .same_dtype(N(v_steps), N(k_cache))
      .same_shape(N(v_steps), N(k_steps));
  if (!c.ok()) return;
  int64_t batch = N(q).dim(0), kv_heads = N(k_cache).dim(2), size = N(q).dim(2);
  c.shape(N(k_cache), {N(k_cache).dim(0), N(k_cache).dim(1), kv_heads, size});
  c.shape(N(k_steps), {N(k_steps).dim(0), N(k_steps).dim(1), kv_heads, size});
  c.that(kv_heads > 0 && N(q).dim(1) % kv_heads == 0,
         "the heads of q " + shape_text(a.q) + " are no multiple of those of k_cache " + shape_text(a.k_cache));
  c.dtype(N(block_table), kIsInt32).ndim(N(block_table), 2).shape(N(block_table), {batch, N(block_table).dim(1)});
  c.dtype(N(ancestors), kIsInt32).shape(N(ancestors), {batch, N(k_steps).dim(0)});
  c.dtype(N(lengths), kIsInt32).elements(N(lengths), batch);
  c.dtype(N(steps), kIsInt32).elements(N(steps), a.steps->elements == 1 ? 1 : batch);
}

// ---- choosing tokens -------------------------------------------------------------------------------------------------

void check_operands(Check& c, const qt_log_softmax_args& a) {
  c.dtype(N(x), kIsFloat32).dtype(N(y), kIsFloat32).same_shape(N(y), N(x));
}

void check_operands(Check& c, const qt_logits_process_args& a) {
  c.dtype(N(logits), kIsFloat32).ndim(N(logits), 2).dtype(N(history), kIsInt32).ndim(N(history), 2).dtype(N(lengths), kIsInt32);
  c.shape(N(history), {N(logits).dim(0), N(history).dim(1)}).elements(N(lengths), N(logits).dim(0));
}

void check_operands(Check& c, const qt_suppress_tokens_args& a) {
  c.dtype(N(logits), kIsFloat32).ndim(N(logits), 2).dtype(N(ids), kIsInt32);
}

void check_operands(Check& c, const qt_argmax_args& a) {
  c.dtype(N(logits), kIsFloat32).ndim(N(logits), 2).dtype(N(tokens), kIsInt32).elements(N(tokens), N(logits).dim(0));
  c.dtype(N(values), kIsFloat32).elements(N(values), N(logits).dim(0)).that(N(logits).dim(1) > 0, "logits has no columns");
}

void check_operands(Check& c, const qt_sample_args& a) {
  int64_t batch = N(logits).dim(0);
  c.dtype(N(logits), kIsFloat32).ndim(N(logits), 2).dtype(N(tokens), kIsInt32).elements(N(tokens), batch);
  c.dtype(N(log_probs), kIsFloat32).elements(N(log_probs), batch).dtype(N(rng), kIsInt32).shape(N(rng), {batch, 2});
  c.that(N(logits).dim(1) > 0, "logits has no columns");
}

void check_operands(Check& c, const qt_beam_topk_args& a) {
  c.dtype(N(log_probs), kIsFloat32).ndim(N(log_probs), 2).dtype(N(beam_scores), kIsFloat32);
  c.elements(N(beam_scores), N(log_probs).dim(0)).dtype(N(scores), kIsFloat32).ndim(N(scores), 2);
  c.dtype(N(beams), kIsInt32).same_shape(N(beams), N(scores)).dtype(N(tokens), kIsInt32).same_shape(N(tokens), N(scores));
  int64_t prompts = N(scores).dim(0);
  c.that(prompts > 0 ? N(log_probs).dim(0) % prompts == 0 : N(log_probs).dim(0) == 0,
         "the rows of log_probs " + shape_text(a.log_probs) + " do not divide among the prompts of scores " +
             shape_text(a.scores));
}

}  // namespace quantune
