// The head and its loss without the logits of all positions: rows that have targets are taken in chunks; a chunk's logits are
// computed, turned into losses and, in place, into dlogits = count * softmax - sum of one-hot targets, and multiplied on.
#include <cmath>
#include <initializer_list>

#include "linear.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int64_t chunk_bytes = 48 << 20, least_chunk_rows = 16, most_chunk_rows = 384;

int64_t rows_per_chunk(int64_t vocabulary) {
  int64_t rows = chunk_bytes / (vocabulary * static_cast<int64_t>(sizeof(float)));
  if (rows > most_chunk_rows) rows = most_chunk_rows;
  return rows < least_chunk_rows ? least_chunk_rows : rows;
}

// Distinct target rows: row `rows[i]` has the targets [first[i], first[i + 1]).
struct TargetRows {
  int32_t *rows, *first;
  int64_t count;
};

qt_status collect_rows(qt_stream* stream, const qt_linear_cross_entropy_args* args, int64_t row_limit, int64_t vocabulary,
                       TargetRows* out) {
  const int64_t n = args->targets->elements;
  const int32_t *rows = static_cast<const int32_t*>(args->target_rows->data),
                *targets = static_cast<const int32_t*>(args->targets->data);
  out->rows = stream->scratch_of<int32_t>(n + 1);
  out->first = stream->scratch_of<int32_t>(n + 1);
  if (!out->rows || !out->first) return out_of_scratch(stream, "linear_cross_entropy");
  out->count = 0;
  for (int64_t i = 0; i < n; i++) {
    if (rows[i] < 0 || rows[i] >= row_limit)
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "linear_cross_entropy: target_rows[%lld] is %d, x has %lld rows",
                                static_cast<long long>(i), rows[i], static_cast<long long>(row_limit));
    if (targets[i] < 0 || targets[i] >= vocabulary)
      return stream->host->fail(stream, QT_INVALID_ARGUMENT,
                                "linear_cross_entropy: targets[%lld] is %d, the head has %lld rows", static_cast<long long>(i),
                                targets[i], static_cast<long long>(vocabulary));
    if (i && rows[i] < rows[i - 1])
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "linear_cross_entropy: target_rows is not ascending at %lld",
                                static_cast<long long>(i));
    if (!i || rows[i] != rows[i - 1]) {
      out->rows[out->count] = rows[i];
      out->first[out->count++] = static_cast<int32_t>(i);
    }
  }
  out->first[out->count] = static_cast<int32_t>(n);
  return QT_OK;
}

// Losses of one row's targets; with `gradient` the logits become dlogits.
void row_loss(float* logits, int64_t vocabulary, const int32_t* targets, int count, float* losses, bool gradient) {
  Vec highest = Vec::broadcast(-__builtin_inff());
  const int64_t whole = vocabulary / Vec::width * Vec::width;
  for (int64_t i = 0; i < whole; i += Vec::width) highest = max(highest, Vec::load(logits + i));
  float top = reduce_max(highest);
  for (int64_t i = whole; i < vocabulary; i++) top = logits[i] > top ? logits[i] : top;
  Vec sums = Vec::zero();
  const Vec shift = Vec::broadcast(top);
  for (int i = 0; i < count; i++) losses[i] = logits[targets[i]];
  for_each_vec(vocabulary, [&](int64_t i, int n) {
    if (n == Vec::width) {
      const Vec e = exp(Vec::load(logits + i) - shift);
      sums = sums + e;
      if (gradient) e.store(logits + i);
      return;
    }
    float rest[Vec::width] = {};
    exp(Vec::load_partial(logits + i, n) - shift).store(rest);
    for (int j = n; j < Vec::width; j++) rest[j] = 0.0f;
    sums = sums + Vec::load(rest);
    if (gradient) Vec::load(rest).store_partial(logits + i, n);
  });
  const float sum = reduce_add(sums), log_sum = top + std::log(sum);
  for (int i = 0; i < count; i++) losses[i] = log_sum - losses[i];
  if (!gradient) return;
  const Vec factor = Vec::broadcast(static_cast<float>(count) / sum);
  for_each_vec(vocabulary, [&](int64_t i, int n) {
    if (n == Vec::width)
      (Vec::load(logits + i) * factor).store(logits + i);
    else
      (Vec::load_partial(logits + i, n) * factor).store_partial(logits + i, n);
  });
  for (int i = 0; i < count; i++) logits[targets[i]] -= 1.0f;
}

void sum_columns(qt_stream* stream, const float* x, int64_t m, int64_t n, float* out, bool accumulate) {
  constexpr int64_t block = 1024;
  stream->parallel_for((n + block - 1) / block, [&](int64_t task) {
    const int64_t first = task * block, count = n - first < block ? n - first : block;
    float* to = out + first;
    if (!accumulate) std::memset(to, 0, static_cast<size_t>(count) * sizeof(float));
    for (int64_t i = 0; i < m; i++) {
      const float* from = x + i * n + first;
      for (int64_t j = 0; j < count; j++) to[j] += from[j];
    }
  });
}

// What one call keeps: scratch for a chunk.
struct Chunk {
  int64_t rows;
  float *logits, *h, *t, *dx;  // [rows, V]; [rows, r]; [rows, r]; [rows, K], null where rows of dx are contiguous
  char* x;                     // gathered rows, null where they are contiguous
};

bool contiguous(const TargetRows& t, int64_t first, int64_t count) {
  return t.rows[first + count - 1] - t.rows[first] == count - 1;
}

void clear(const qt_tensor* t) {
  if (t) std::memset(t->data, 0, static_cast<size_t>(t->elements) * (t->dtype == QT_FLOAT32 ? 4 : 2));
}

qt_status chunk_gradients(qt_stream* stream, const qt_linear_cross_entropy_args* args, const Linear& w,
                          const TargetRows& target, int64_t first, int64_t count, const Chunk& chunk, const void* x,
                          int x_dtype) {
  const Factor x_columns = {x, x_dtype, nullptr, 1, w.k}, dy_rows = rows_of(chunk.logits, w.n),
               dy_columns = columns_of(chunk.logits, w.n);
  const bool accumulate = first > 0;
  const float* t = nullptr;
  if (w.lora_a && (args->dx || args->d_lora_a)) {
    const Product up = {dy_rows, columns_of(w.lora_b), w.n, 1.0f};
    if (qt_status status = gemm(stream, count, w.rank(), &up, 1, result_of(chunk.t, w.rank(), false), w.compute)) return status;
    t = chunk.t;
  }
  if (args->dx) {
    const int size = args->dx->dtype == QT_FLOAT32 ? 4 : 2;
    char* out = static_cast<char*>(args->dx->data);
    const bool direct = contiguous(target, first, count);
    const Result dx = direct ? Result{out + target.rows[first] * w.k * size, args->dx->dtype, w.k, 1, false, nullptr}
                             : Result{chunk.dx, args->dx->dtype, w.k, 1, false, nullptr};
    if (qt_status status = linear_input_gradient(stream, w, dy_rows, t, count, dx)) return status;
    if (!direct) {
      const char* from = reinterpret_cast<const char*>(chunk.dx);
      for (int64_t i = 0; i < count; i++)
        std::memcpy(out + target.rows[first + i] * w.k * size, from + i * w.k * size, static_cast<size_t>(w.k * size));
    }
  }
  if (args->d_weight) {
    float* out = static_cast<float*>(args->d_weight->data);
    if (qt_status status = linear_weight_gradient(stream, w, x_columns, dy_columns, count, out, accumulate)) return status;
  }
  if (args->d_bias) sum_columns(stream, chunk.logits, count, w.n, static_cast<float*>(args->d_bias->data), accumulate);
  if (args->d_lora_a) {
    float* out = static_cast<float*>(args->d_lora_a->data);
    if (qt_status status = lora_a_gradient(stream, w, x_columns, t, count, out, accumulate)) return status;
  }
  if (args->d_lora_b) {
    float* out = static_cast<float*>(args->d_lora_b->data);
    if (qt_status status = lora_b_gradient(stream, w, columns_of(chunk.h, w.rank()), dy_columns, count, out, accumulate))
      return status;
  }
  return QT_OK;
}

}  // namespace

qt_status linear_cross_entropy(qt_stream* stream, const qt_linear_cross_entropy_args* args) {
  const Linear w(args->weight, args->lora_a, args->lora_b, args->transposed != 0, static_cast<float>(args->lora_scale),
                 args->x->dtype);
  TargetRows target;
  if (qt_status status = collect_rows(stream, args, row_count(args->x), w.n, &target)) return status;
  clear(args->dx);  // rows without a target
  if (target.count == 0) {
    for (const qt_tensor* t : {args->d_weight, args->d_bias, args->d_lora_a, args->d_lora_b}) clear(t);
    return QT_OK;
  }
  const bool gradient = args->dx || args->d_weight || args->d_bias || args->d_lora_a || args->d_lora_b;
  const int64_t limit = rows_per_chunk(w.n);
  Chunk chunk = {target.count < limit ? target.count : limit, nullptr, nullptr, nullptr, nullptr, nullptr};
  const int x_size = args->x->dtype == QT_FLOAT32 ? 4 : 2;
  const int64_t rank = w.lora_a ? w.rank() : 0;
  chunk.logits = stream->scratch_of<float>(chunk.rows * w.n);
  chunk.h = stream->scratch_of<float>(chunk.rows * rank + 1);
  chunk.t = stream->scratch_of<float>(chunk.rows * rank + 1);
  chunk.dx = stream->scratch_of<float>(args->dx ? chunk.rows * w.k : 1);
  chunk.x = stream->scratch_of<char>(chunk.rows * w.k * x_size);
  const float* bias = nullptr;
  if (args->bias && !(bias = float_bias(stream, args->bias))) return out_of_scratch(stream, "linear_cross_entropy");
  if (!chunk.logits || !chunk.h || !chunk.t || !chunk.dx || !chunk.x) return out_of_scratch(stream, "linear_cross_entropy");

  const int32_t* targets = static_cast<const int32_t*>(args->targets->data);
  float* losses = static_cast<float*>(args->losses->data);
  for (int64_t first = 0; first < target.count; first += chunk.rows) {
    if (stream->stopping()) return stream->host->fail(stream, QT_INTERNAL, "the environment is shutting down");
    const int64_t count = target.count - first < chunk.rows ? target.count - first : chunk.rows;
    const char* x = static_cast<const char*>(args->x->data) + target.rows[first] * w.k * x_size;
    if (!contiguous(target, first, count)) {
      for (int64_t i = 0; i < count; i++)
        std::memcpy(chunk.x + i * w.k * x_size, static_cast<const char*>(args->x->data) + target.rows[first + i] * w.k * x_size,
                    static_cast<size_t>(w.k * x_size));
      x = chunk.x;
    }
    const Factor rows = {x, args->x->dtype, nullptr, w.k, 1};
    Result h = result_of(chunk.h, rank, false);
    if (qt_status status =
            linear_forward(stream, w, rows, rows, count, result_of(chunk.logits, w.n, false, bias), w.lora_a ? &h : nullptr))
      return status;
    stream->parallel_for(count, [&](int64_t i) {
      const int32_t from = target.first[first + i], to = target.first[first + i + 1];
      row_loss(chunk.logits + i * w.n, w.n, targets + from, to - from, losses + from, gradient);
    });
    if (gradient)
      if (qt_status status = chunk_gradients(stream, args, w, target, first, count, chunk, x, args->x->dtype)) return status;
  }
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
