import type { Tensor } from '../lib/tensor/tensor.js'

/**
 * The operations, in the order of their operands in csrc/core/ops.def, which says what each one computes. Outputs come first and
 * are overwritten (or accumulated into) where the caller made them. Each call queues and returns at once.
 */
export interface Ops {
  // moving data
  fill(out: Tensor, value: number): void
  fill_list(outs: readonly Tensor[], value: number): void
  copy(out: Tensor, x: Tensor): void
  add(out: Tensor, a: Tensor, b: Tensor, alpha: number): void
  scale(out: Tensor, x: Tensor, by: Tensor | null, factor: number): void
  sum(out: Tensor, x: Tensor, factor: number, accumulate: number): void
  gather_rows(out: Tensor, x: Tensor, rows: Tensor): void
  scatter_add_rows(out: Tensor, x: Tensor, rows: Tensor): void
  append_column(matrix: Tensor, values: Tensor, index: Tensor): void
  increment(x: Tensor, by: number): void
  random_uniform(out: Tensor, seed: number, site: number, low: number, high: number): void
  random_normal(out: Tensor, seed: number, site: number, mean: number, std: number): void

  // embedding
  embedding(y: Tensor, ids: Tensor, table: Tensor, rows: Tensor | null, row_of: Tensor | null): void
  embedding_backward(d_table: Tensor | null, d_rows: Tensor | null, dy: Tensor, ids: Tensor, row_of: Tensor | null): void

  // norms (x [M, K]; mean, rstd [M] float32; dw, db accumulate in float32; dx overwrites, or adds when accumulate is 1)
  rms_norm(y: Tensor, rstd: Tensor | null, x: Tensor, weight: Tensor, eps: number): void
  rms_norm_backward(
    dx: Tensor | null,
    d_weight: Tensor | null,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    accumulate: number,
  ): void
  layer_norm(
    y: Tensor,
    mean: Tensor | null,
    rstd: Tensor | null,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | null,
    eps: number,
  ): void
  layer_norm_backward(
    dx: Tensor | null,
    d_weight: Tensor | null,
    d_bias: Tensor | null,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    accumulate: number,
  ): void

  // rope: table [T, D] float32 holds cos in its first D/2 columns and sin in the rest; "rotate half" as in Hugging Face
  rope_table(table: Tensor, positions: Tensor, inv_freq: Tensor, attention_scaling: number): void
  rope(y: Tensor, x: Tensor, table: Tensor, inverse: number): void

  // matrix products
  matmul(c: Tensor, a: Tensor, b: Tensor, transpose_a: number, transpose_b: number, alpha: number, accumulate: number): void
  linear(
    y: Tensor,
    lora_h: Tensor | null,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | null,
    lora_x: Tensor | null,
    lora_a: Tensor | null,
    lora_b: Tensor | null,
    transposed: number,
    lora_scale: number,
  ): void
  linear_backward(
    dx: Tensor | null,
    d_lora_x: Tensor | null,
    d_weight: Tensor | null,
    d_bias: Tensor | null,
    d_lora_a: Tensor | null,
    d_lora_b: Tensor | null,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_x: Tensor | null,
    lora_a: Tensor | null,
    lora_b: Tensor | null,
    lora_h: Tensor | null,
    transposed: number,
    lora_scale: number,
    accumulate: number,
  ): void
  linear_cross_entropy(
    losses: Tensor,
    dx: Tensor | null,
    d_weight: Tensor | null,
    d_bias: Tensor | null,
    d_lora_a: Tensor | null,
    d_lora_b: Tensor | null,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | null,
    lora_a: Tensor | null,
    lora_b: Tensor | null,
    target_rows: Tensor,
    targets: Tensor,
    transposed: number,
    lora_scale: number,
  ): void

  // activations (element-wise; outputs may be the operand they replace)
  swiglu(y: Tensor, gate: Tensor, up: Tensor): void
  swiglu_backward(d_gate: Tensor, d_up: Tensor, dy: Tensor, gate: Tensor, up: Tensor): void
  activation(y: Tensor, x: Tensor, kind: number): void
  activation_backward(dx: Tensor, dy: Tensor, x: Tensor, kind: number): void
  dropout(y: Tensor, x: Tensor, rng: Tensor, site: number, p: number): void

  // attention over segment trees
  attention_plan(plan: Tensor, rows: Tensor | null, end: Tensor, queries: number): void
  attention(
    o: Tensor,
    lse: Tensor | null,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | null,
    end: Tensor,
    plan: Tensor,
    scale: number,
  ): void
  attention_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    d_o: Tensor,
    o: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | null,
    end: Tensor,
    plan: Tensor,
    scale: number,
  ): void
  kv_write(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slots: Tensor): void
  attention_decode(
    o: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    k_steps: Tensor,
    v_steps: Tensor,
    ancestors: Tensor,
    steps: Tensor,
    scale: number,
  ): void

  // choosing tokens (logits [B, V] float32)
  log_softmax(y: Tensor, x: Tensor): void
  logits_process(
    logits: Tensor,
    history: Tensor,
    lengths: Tensor,
    repetition_penalty: number,
    no_repeat_ngram_size: number,
  ): void
  suppress_tokens(logits: Tensor, ids: Tensor): void
  argmax(tokens: Tensor, values: Tensor | null, logits: Tensor): void
  sample(
    tokens: Tensor,
    log_probs: Tensor | null,
    logits: Tensor,
    rng: Tensor,
    temperature: number,
    top_k: number,
    top_p: number,
    min_p: number,
  ): void
  beam_topk(scores: Tensor, beams: Tensor, tokens: Tensor, log_probs: Tensor, beam_scores: Tensor): void

  // optimizer (float32)
  grad_norm(norm: Tensor, grads: readonly Tensor[]): void
  adamw(
    params: readonly Tensor[],
    grads: readonly Tensor[],
    m: readonly Tensor[],
    v: readonly Tensor[],
    norm: Tensor,
    not_finite: Tensor,
    learning_rate: number,
    beta1: number,
    beta2: number,
    eps: number,
    weight_decay: number,
    max_norm: number,
    step: number,
  ): void

  // 4-bit weights (bitsandbytes' values; block and double quantization are properties of the handle)
  quantize(q: Tensor, w: Tensor): void
  dequantize(w: Tensor, q: Tensor): void
  quantized_load(
    q: Tensor,
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | null,
    nested_code: Tensor | null,
    offset: number,
  ): void
  quantized_export(
    codes: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | null,
    nested_code: Tensor | null,
    offset: Tensor | null,
    q: Tensor,
  ): void
}
