// Attention over segment trees, forward: flash attention (Dao et al. 2022) with online softmax over the key blocks that a block
// of queries sees, all query heads of a key head together.
#include <cmath>

#include "attention_tiles.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr int64_t kSlice = 48;  // rows whose scores are held at once: scores, keys and values stay in the first-level cache

// One block of queries with one key head, while its key blocks pass by.
struct QueryBlock {
  int64_t rows;
  float *q, *o;            // [rows, padded]
  float *highest, *decay;  // [rows]
  float* total;            // [rows, Vec::width]: the softmax's denominator, lane by lane until the end
  float* stream_index;     // [rows]
  float* scores;           // [kSlice, kKeyBlock]

  static int64_t bytes(const AttentionShape& s) {
    const int64_t rows = kQueryBlock * s.group;
    return 2 * Workspace::need(rows * s.padded) + 3 * Workspace::need(rows) + Workspace::need(rows * Vec::width) +
           Workspace::need(kSlice * kKeyBlock);
  }
  QueryBlock(const AttentionShape& s, Workspace space) {
    rows = kQueryBlock * s.group;
    q = space.take(rows * s.padded);
    o = space.take(rows * s.padded);
    highest = space.take(rows);
    decay = space.take(rows);
    stream_index = space.take(rows);
    total = space.take(rows * Vec::width);
    scores = space.take(kSlice * kKeyBlock);
  }

  template <class T>
  void start(const AttentionShape& s, const T* queries, int64_t block, int64_t kv_head, float scale) {
    rows = s.block_queries(block) * s.group;
    pack_rows(queries, s, block, kv_head, scale * kLog2E, q);
    std::memset(o, 0, rows * s.padded * sizeof(float));
    std::memset(total, 0, rows * Vec::width * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
      highest[r] = kInvisible;
      stream_index[r] = static_cast<float>(s.row(block * kQueryBlock + r / s.group));
    }
  }

  // Scores of row r become probabilities relative to the highest score so far; what was summed before decays.
  void soften_row(float* score, int64_t r, Columns columns, const KeyBlock* mask) {
    constexpr int64_t w = Vec::width;
    Vec best = Vec::broadcast(highest[r]);
    for (int64_t j = columns.begin; j < columns.end; j += w) {
      Vec x = Vec::load(score + j);
      if (mask) {
        x = mask->select(j, stream_index[r], x, Vec::broadcast(kInvisible));
        x.store(score + j);
      }
      best = max(best, x);
    }
    const float top = reduce_max(best);
    Vec sum = Vec::zero();
    for (int64_t j = columns.begin; j < columns.end; j += w) {
      const Vec x = Vec::load(score + j);
      Vec p = exp2_nonpositive(x - Vec::broadcast(top));
      if (mask) p = select_less(x, Vec::broadcast(kInvisible / 2), Vec::zero(), p);
      p.store(score + j);
      sum = sum + p;
    }
    decay[r] = highest[r] - top;  // becomes 2^ of it for the whole slice at once
    highest[r] = top;
    fma(Vec::load(total + r * w), exp2_nonpositive(Vec::broadcast(decay[r])), sum).store(total + r * w);
  }

  void pass(const AttentionShape& s, const float* k, const float* v, const KeyBlock* mask) {
    for (int64_t begin = 0; begin < rows; begin += kSlice) {
      const int64_t count = least(kSlice, rows - begin);
      const Columns columns = mask ? mask->visible(stream_index + begin, count) : Columns{0, kKeyBlock};
      const int64_t width = columns.end - columns.begin;
      if (width == 0) continue;
      multiply<Into::kOverwrite, false>(q + begin * s.padded, s.padded, k + columns.begin, kKeyBlock, count, width, s.size,
                                        scores + columns.begin, kKeyBlock);
      for (int64_t r = 0; r < count; r++) soften_row(scores + r * kKeyBlock, begin + r, columns, mask);
      for_vectors(begin, begin + count, [&](int64_t r, int n) { store(exp2_nonpositive(load(decay + r, n)), decay + r, n); });
      multiply<Into::kDecay, false>(scores + columns.begin, kKeyBlock, v + columns.begin * s.padded, s.padded, count, s.padded,
                                    width, o + begin * s.padded, s.padded, decay + begin);
    }
  }

  template <class T>
  void finish(const AttentionShape& s, int64_t block, int64_t kv_head, T* out, float* lse) const {
    for (int64_t r = 0; r < rows; r++) {
      const float sum = reduce_add(Vec::load(total + r * Vec::width));
      const int64_t row = (block * kQueryBlock + r / s.group) * s.heads + kv_head * s.group + r % s.group;
      const Vec inverse = Vec::broadcast(sum > 0 ? 1 / sum : sum == 0 ? 0 : sum);  // NaN stays NaN
      for_each_vec(s.size,
                   [&](int64_t d, int n) { store(load(o + r * s.padded + d, n) * inverse, out + row * s.size + d, n); });
      if (lse) lse[row] = sum == 0 ? -__builtin_inff() : highest[r] * kLn2 + logf(sum);
    }
  }
};

template <class T>
qt_status run(qt_stream* stream, const qt_attention_args* a, const AttentionShape& s) {
  const int64_t blocks = s.kv_heads * s.plan.key_blocks, bytes = QueryBlock::bytes(s);
  const PackedBlocks k{nullptr, stream->scratch_of<float>(blocks * kKeyBlock * s.size)};
  const PackedBlocks v{stream->scratch_of<float>(blocks * kKeyBlock * s.padded), nullptr};
  char* space = static_cast<char*>(stream->scratch(stream->workers() * bytes));
  if (!k.transposed || !v.straight || !space) return out_of_scratch(stream);
  pack_all(stream, data_of<const T>(a->k), s, k);
  pack_all(stream, data_of<const T>(a->v), s, v);
  // The last blocks of queries see most keys: they come first, so that no thread is left alone with one at the end.
  stream->parallel_for_worker(s.plan.query_blocks * s.kv_heads, [&](int64_t task, int worker) {
    const int64_t block = s.plan.query_blocks - 1 - task / s.kv_heads, kv_head = task % s.kv_heads;
    QueryBlock query_block(s, {space + worker * bytes, bytes, 0});
    query_block.start(s, data_of<const T>(a->q), block, kv_head, static_cast<float>(a->scale));
    KeyBlock mask;
    for (int64_t key_block = 0; key_block < s.plan.key_blocks; key_block++) {
      const int32_t state = s.plan.state(block, key_block);
      if (state == kNone) continue;
      if (state == kSome) mask.read(s, key_block);
      const int64_t at = kv_head * s.plan.key_blocks + key_block;
      query_block.pass(s, k.transposed + at * kKeyBlock * s.size, v.straight + at * kKeyBlock * s.padded,
                       state == kSome ? &mask : nullptr);
    }
    query_block.finish(s, block, kv_head, data_of<T>(a->o), data_of<float>(a->lse));
  });
  return QT_OK;
}

}  // namespace

int64_t attention_plan_size(int64_t queries, int64_t keys) {
  return kPlanHeader + ceil_div(queries, kQueryBlock) * ceil_div(keys, kKeyBlock);
}

qt_status attention_plan(qt_stream* stream, const qt_attention_plan_args* args) {
  const int64_t queries = args->queries, keys = args->end->elements;
  const int64_t query_blocks = ceil_div(queries, kQueryBlock), key_blocks = ceil_div(keys, kKeyBlock);
  const int32_t *rows = data_of<const int32_t>(args->rows), *end = data_of<const int32_t>(args->end);
  int32_t* plan = data_of<int32_t>(args->plan);
  if (keys >= 1 << 24) return stream->host->fail(stream, QT_UNSUPPORTED, "attention serves fewer than 2^24 keys");
  if (args->plan->elements < attention_plan_size(queries, keys)) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "plan has %lld elements, expected %lld",
                              static_cast<long long>(args->plan->elements),
                              static_cast<long long>(attention_plan_size(queries, keys)));
  }
  for (int64_t j = 0; j < keys; j++) {
    if (end[j] < 0 || end[j] > keys) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "end[%lld] is %d, expected 0 to %lld", static_cast<long long>(j),
                                end[j], static_cast<long long>(keys));
    }
  }
  for (int64_t i = 0; i < queries; i++) {
    const int64_t row = rows ? rows[i] : i;
    if (row < 0 || row >= keys) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "rows[%lld] is %lld, expected 0 to %lld (the keys)",
                                static_cast<long long>(i), static_cast<long long>(row), static_cast<long long>(keys - 1));
    }
  }
  const int64_t header[kPlanHeader] = {queries, keys, query_blocks, key_blocks};
  for (int64_t i = 0; i < kPlanHeader; i++) plan[i] = static_cast<int32_t>(header[i]);
  int32_t* bounds = stream->scratch_of<int32_t>(2 * key_blocks + 1);  // the lowest and highest end of each block of keys
  if (!bounds) return out_of_scratch(stream);
  for (int64_t b = 0; b < key_blocks; b++) {
    int32_t lowest = INT32_MAX, highest = 0;
    for (int64_t j = b * kKeyBlock; j < least(keys, (b + 1) * kKeyBlock); j++) {
      lowest = end[j] < lowest ? end[j] : lowest;
      highest = end[j] > highest ? end[j] : highest;
    }
    bounds[2 * b] = lowest;
    bounds[2 * b + 1] = highest;
  }
  for (int64_t a = 0; a < query_blocks; a++) {
    int64_t first = INT64_MAX, last = 0;
    for (int64_t i = a * kQueryBlock; i < least(queries, (a + 1) * kQueryBlock); i++) {
      const int64_t row = rows ? rows[i] : i;
      first = row < first ? row : first;
      last = row > last ? row : last;
    }
    for (int64_t b = 0; b < key_blocks; b++) {
      const int64_t past = (b + 1) * kKeyBlock;
      const bool none = last < b * kKeyBlock || bounds[2 * b + 1] <= first;
      const bool all = past <= keys && past - 1 <= first && last < bounds[2 * b];
      plan[kPlanHeader + a * key_blocks + b] = none ? kNone : all ? kAll : kSome;
    }
  }
  return QT_OK;
}

qt_status attention(qt_stream* stream, const qt_attention_args* args) {
  const AttentionShape s = attention_shape(args->q, args->k, args->rows, args->end, args->plan);
  qt_status status = check_attention(stream, s, args->plan);
  if (status != QT_OK) return status;
  return with_activation(stream, args->q->dtype, [&](auto zero) { return run<decltype(zero)>(stream, args, s); });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
