// Attention over segment trees, backward: probabilities are recomputed from the log-sum-exp, P = e^(S - lse), and with
// delta = rowsum(dO ∘ O): dV = Pᵀ dO, dS = P ∘ (dO Vᵀ - delta), dQ = scale dS K, dK = scale dSᵀ Q.
//
// A task takes one key head and one chunk of the blocks of queries, computes their dQ and sums dK and dV of all keys into
// memory of its own. The chunks, whose number depends on the heads alone, are then added up in their order: so the sums do not
// depend on the threads, and nothing is computed twice.
#include <cmath>

#include "attention_tiles.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr int64_t kSlice = 48;  // rows whose probabilities are held at once
constexpr int64_t kTasks = 16;  // tasks wanted: heads times chunks
constexpr int64_t kMostChunks = 16;

// Packed operands of a call: keys both ways, values transposed.
struct Operands {
  float *k, *k_transposed, *v_transposed;
};

// One block of queries with one key head.
struct QueryBlock {
  int64_t rows;
  float *q, *d_o, *dq;                // [rows, padded]
  float *lse, *delta, *stream_index;  // [rows]; lse in units of log 2
  float *p, *ds;                      // [kSlice, kKeyBlock]

  static int64_t bytes(const AttentionShape& s) {
    const int64_t rows = kQueryBlock * s.group;
    return 3 * Workspace::need(rows * s.padded) + 3 * Workspace::need(rows) + 2 * Workspace::need(kSlice * kKeyBlock);
  }
  QueryBlock(const AttentionShape& s, Workspace space) {
    rows = kQueryBlock * s.group;
    q = space.take(rows * s.padded);
    d_o = space.take(rows * s.padded);
    dq = space.take(rows * s.padded);
    lse = space.take(rows);
    delta = space.take(rows);
    stream_index = space.take(rows);
    p = space.take(kSlice * kKeyBlock);
    ds = space.take(kSlice * kKeyBlock);
    // The lanes between the head size and whole vectors are never written again, but take part in products.
    std::memset(q, 0, rows * s.padded * sizeof(float));
    std::memset(d_o, 0, rows * s.padded * sizeof(float));
  }

  template <class T>
  void start(const AttentionShape& s, const qt_attention_backward_args* a, int64_t block, int64_t kv_head) {
    rows = s.block_queries(block) * s.group;
    pack_rows(data_of<const T>(a->q), s, block, kv_head, static_cast<float>(a->scale) * kLog2E, q);
    pack_rows(data_of<const T>(a->d_o), s, block, kv_head, 1.0f, d_o);
    std::memset(dq, 0, rows * s.padded * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
      const int64_t query = block * kQueryBlock + r / s.group, row = query * s.heads + kv_head * s.group + r % s.group;
      const T* o = data_of<const T>(a->o) + row * s.size;
      Vec sum = Vec::zero();
      for_each_vec(s.size, [&](int64_t d, int n) { sum = fma(load(o + d, n), load(d_o + r * s.padded + d, n), sum); });
      delta[r] = reduce_add(sum);
      lse[r] = data_of<const float>(a->lse)[row] * kLog2E;
      stream_index[r] = static_cast<float>(s.row(query));
    }
  }

  // Row r of the slice: scores and dO Vᵀ become P and P ∘ (dO Vᵀ - delta).
  void differentiate_row(float* prob, float* d_score, int64_t r, Columns columns, const KeyBlock* mask) const {
    const Vec total = Vec::broadcast(lse[r]), shift = Vec::broadcast(delta[r]);
    for (int64_t j = columns.begin; j < columns.end; j += Vec::width) {
      Vec x = exp2_nonpositive(min(Vec::zero(), Vec::load(prob + j) - total));
      if (mask) x = mask->select(j, stream_index[r], x, Vec::zero());
      x.store(prob + j);
      (x * (Vec::load(d_score + j) - shift)).store(d_score + j);
    }
  }

  void pass(const AttentionShape& s, const Operands& keys, int64_t at, const KeyBlock* mask, float* dk, float* dv) {
    const float* k = keys.k + at * kKeyBlock * s.padded;
    const float* k_transposed = keys.k_transposed + at * kKeyBlock * s.size;
    const float* v_transposed = keys.v_transposed + at * kKeyBlock * s.size;
    for (int64_t begin = 0; begin < rows; begin += kSlice) {
      const int64_t count = least(kSlice, rows - begin);
      const Columns columns = mask ? mask->visible(stream_index + begin, count) : Columns{0, kKeyBlock};
      const int64_t first = columns.begin, width = columns.end - first;
      if (width == 0) continue;
      const float *q_slice = q + begin * s.padded, *d_o_slice = d_o + begin * s.padded;
      multiply<Into::kOverwrite, false>(q_slice, s.padded, k_transposed + first, kKeyBlock, count, width, s.size, p + first,
                                        kKeyBlock);
      multiply<Into::kOverwrite, false>(d_o_slice, s.padded, v_transposed + first, kKeyBlock, count, width, s.size, ds + first,
                                        kKeyBlock);
      for (int64_t r = 0; r < count; r++) differentiate_row(p + r * kKeyBlock, ds + r * kKeyBlock, begin + r, columns, mask);
      multiply<Into::kAdd, true>(p + first, kKeyBlock, d_o_slice, s.padded, width, s.padded, count, dv + first * s.padded,
                                 s.padded);
      multiply<Into::kAdd, true>(ds + first, kKeyBlock, q_slice, s.padded, width, s.padded, count, dk + first * s.padded,
                                 s.padded);
      multiply<Into::kAdd, false>(ds + first, kKeyBlock, k + first * s.padded, s.padded, count, s.padded, width,
                                  dq + begin * s.padded, s.padded);
    }
  }

  template <class T>
  void finish(const AttentionShape& s, int64_t block, int64_t kv_head, float scale, T* out) const {
    for (int64_t r = 0; r < rows; r++) {
      const int64_t row = (block * kQueryBlock + r / s.group) * s.heads + kv_head * s.group + r % s.group;
      for_each_vec(s.size, [&](int64_t d, int n) {
        store(load(dq + r * s.padded + d, n) * Vec::broadcast(scale), out + row * s.size + d, n);
      });
    }
  }
};

// Cuts the blocks of queries into chunks of about equal work: bounds[c] .. bounds[c + 1].
void balance(const Plan& plan, int64_t chunks, int64_t* bounds) {
  int64_t total = 0, done = 0, chunk = 1;
  for (int64_t i = 0; i < plan.query_blocks * plan.key_blocks; i++) total += plan.states[i] != kNone;
  bounds[0] = 0;
  for (int64_t block = 0; block < plan.query_blocks; block++) {
    for (int64_t key_block = 0; key_block < plan.key_blocks; key_block++) done += plan.state(block, key_block) != kNone;
    while (chunk < chunks && done * chunks >= total * chunk) bounds[chunk++] = block + 1;
  }
  for (; chunk <= chunks; chunk++) bounds[chunk] = plan.query_blocks;
}

// out [Tk, Hkv, D] = factor times the sum of the chunks' [chunk, Hkv, key blocks * kKeyBlock, padded].
void add_chunks(qt_stream* stream, const AttentionShape& s, const float* parts, int64_t chunks, float factor, float* out) {
  const int64_t head_stride = s.plan.key_blocks * kKeyBlock * s.padded;
  for_chunks(stream, s.keys * s.kv_heads, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* from = parts + i % s.kv_heads * head_stride + i / s.kv_heads * s.padded;
      for_each_vec(s.size, [&](int64_t d, int n) {
        Vec sum = Vec::load(from + d);
        for (int64_t c = 1; c < chunks; c++) sum = sum + Vec::load(from + c * s.kv_heads * head_stride + d);
        store(sum * Vec::broadcast(factor), out + i * s.size + d, n);
      });
    }
  });
}

template <class T>
qt_status run(qt_stream* stream, const qt_attention_backward_args* a, const AttentionShape& s) {
  const int64_t key_rows = s.kv_heads * s.plan.key_blocks * kKeyBlock, bytes = QueryBlock::bytes(s);
  const int64_t chunks = least(kMostChunks, least(ceil_div(kTasks, s.kv_heads), s.plan.query_blocks ? s.plan.query_blocks : 1));
  const Operands keys{stream->scratch_of<float>(key_rows * s.padded), stream->scratch_of<float>(key_rows * s.size),
                      stream->scratch_of<float>(key_rows * s.size)};
  float* dk = stream->scratch_of<float>(chunks * key_rows * s.padded);
  float* dv = stream->scratch_of<float>(chunks * key_rows * s.padded);
  char* space = static_cast<char*>(stream->scratch(stream->workers() * bytes));
  if (!keys.k || !keys.k_transposed || !keys.v_transposed || !dk || !dv || !space) return out_of_scratch(stream);
  pack_all(stream, data_of<const T>(a->k), s, {keys.k, keys.k_transposed});
  pack_all(stream, data_of<const T>(a->v), s, {nullptr, keys.v_transposed});
  int64_t bounds[kMostChunks + 1];
  balance(s.plan, chunks, bounds);
  stream->parallel_for_worker(s.kv_heads * chunks, [&](int64_t task, int worker) {
    const int64_t chunk = task / s.kv_heads, kv_head = task % s.kv_heads;
    const int64_t block_floats = kKeyBlock * s.padded, base = (chunk * s.kv_heads + kv_head) * s.plan.key_blocks * block_floats;
    std::memset(dk + base, 0, s.plan.key_blocks * block_floats * sizeof(float));
    std::memset(dv + base, 0, s.plan.key_blocks * block_floats * sizeof(float));
    QueryBlock query_block(s, {space + worker * bytes, bytes, 0});
    KeyBlock mask;
    for (int64_t block = bounds[chunk]; block < bounds[chunk + 1]; block++) {
      query_block.start<T>(s, a, block, kv_head);
      for (int64_t key_block = 0; key_block < s.plan.key_blocks; key_block++) {
        const int32_t state = s.plan.state(block, key_block);
        if (state == kNone) continue;
        if (state == kSome) mask.read(s, key_block);
        query_block.pass(s, keys, kv_head * s.plan.key_blocks + key_block, state == kSome ? &mask : nullptr,
                         dk + base + key_block * block_floats, dv + base + key_block * block_floats);
      }
      query_block.finish(s, block, kv_head, static_cast<float>(a->scale), data_of<T>(a->dq));
    }
  });
  // dK was summed with packed queries, which carry scale log2(e); the scale belongs there, log2(e) does not.
  add_chunks(stream, s, dk, chunks, kLn2, data_of<float>(a->dk));
  add_chunks(stream, s, dv, chunks, 1.0f, data_of<float>(a->dv));
  return QT_OK;
}

}  // namespace

qt_status attention_backward(qt_stream* stream, const qt_attention_backward_args* args) {
  const AttentionShape s = attention_shape(args->q, args->k, args->rows, args->end, args->plan);
  qt_status status = check_attention(stream, s, args->plan);
  if (status != QT_OK) return status;
  return with_activation(stream, args->q->dtype, [&](auto zero) { return run<decltype(zero)>(stream, args, s); });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
