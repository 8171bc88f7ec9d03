// What attention's forward and backward share: the plan, packed keys and values, register-blocked products, masks.
//
// Work is cut into blocks of kQueryBlock queries and kKeyBlock keys. The query heads that share a key head are handled
// together: a block of queries has kQueryBlock * group rows (row = query * group + head), so that keys and values are read once
// a group. Scores are kept in units of log 2 (the scale and log2(e) are folded into the packed queries), probabilities are 2^(s
// - max).
#pragma once
#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {

constexpr int64_t kQueryBlock = 32, kKeyBlock = 64;
constexpr float kInvisible = -1e30f;  // the score of a key that a query does not see
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;

// The plan: a header, then for each block of queries and each block of keys whether all, some or none of the keys are seen.
enum PlanState : int32_t { kNone = 0, kSome = 1, kAll = 2 };
constexpr int64_t kPlanHeader = 4;  // queries, keys, blocks of queries, blocks of keys

struct Plan {
  const int32_t* states;
  int64_t query_blocks, key_blocks;

  int32_t state(int64_t query_block, int64_t key_block) const { return states[query_block * key_blocks + key_block]; }
};

// Sizes and operands of one call.
struct AttentionShape {
  int64_t queries, keys, heads, kv_heads, group, size, padded;  // padded: the head size in whole vectors
  const int32_t* rows;                                          // null: query i stands at i
  const int32_t* end;
  Plan plan;

  int64_t row(int64_t query) const { return rows ? rows[query] : query; }
  int64_t block_queries(int64_t block) const { return least(kQueryBlock, queries - block * kQueryBlock); }
};

// Checks what the core cannot: that rows are stream indices of keys and that the plan was made for these sizes.
inline qt_status check_attention(qt_stream* stream, const AttentionShape& s, const qt_tensor* plan) {
  const int32_t* header = data_of<const int32_t>(plan);
  const int64_t blocks[4] = {s.queries, s.keys, ceil_div(s.queries, kQueryBlock), ceil_div(s.keys, kKeyBlock)};
  if (plan->elements < kPlanHeader + blocks[2] * blocks[3]) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "plan is too small for %lld queries and %lld keys",
                              static_cast<long long>(s.queries), static_cast<long long>(s.keys));
  }
  for (int i = 0; i < kPlanHeader; i++) {
    if (header[i] != blocks[i]) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "plan was made for %d queries and %d keys, not for %lld and %lld",
                                header[0], header[1], static_cast<long long>(s.queries), static_cast<long long>(s.keys));
    }
  }
  for (int64_t i = 0; i < s.queries; i++) {
    if (s.row(i) < 0 || s.row(i) >= s.keys) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "rows[%lld] is %lld, expected 0 to %lld (the keys)",
                                static_cast<long long>(i), static_cast<long long>(s.row(i)),
                                static_cast<long long>(s.keys - 1));
    }
  }
  return QT_OK;
}

inline AttentionShape attention_shape(const qt_tensor* q, const qt_tensor* k, const qt_tensor* rows, const qt_tensor* end,
                                      const qt_tensor* plan) {
  const int64_t heads = q->shape[1], kv_heads = k->shape[1], size = q->shape[2];
  return {q->shape[0],
          k->shape[0],
          heads,
          kv_heads,
          heads / kv_heads,
          size,
          round_up(size, Vec::width),
          data_of<const int32_t>(rows),
          data_of<const int32_t>(end),
          {data_of<const int32_t>(plan) + kPlanHeader, ceil_div(q->shape[0], kQueryBlock), ceil_div(k->shape[0], kKeyBlock)}};
}

// ---- packing ---------------------------------------------------------------------------------------------------------

// Keys or values [Tk, Hkv, D] as float32 blocks, one for each (head, block of keys): straight [kKeyBlock, padded] and
// transposed [D, kKeyBlock], either of them null when not needed. Places past the end hold 0.
struct PackedBlocks {
  float *straight, *transposed;
};

// `count` rows of D elements, row(j) each, become columns of to [D, kKeyBlock]; of its columns [count, columns) hold 0.
template <class Row>
void transpose_keys(const Row& row, int64_t count, int64_t size, int64_t columns, float* to) {
  for (int64_t j = 0; j < columns; j += Vec::width) {
    for_each_vec(size, [&](int64_t d, int n) {
      Vec square[Vec::width];
      for (int i = 0; i < Vec::width; i++) square[i] = j + i < count ? load(row(j + i) + d, n) : Vec::zero();
      transpose(square);
      for (int i = 0; i < n; i++) square[i].store(to + (d + i) * kKeyBlock + j);
    });
  }
}

template <class T>
void pack_block(const T* x, const AttentionShape& s, int64_t head, int64_t block, float* straight, float* transposed) {
  const int64_t first = block * kKeyBlock, count = least(kKeyBlock, s.keys - first), stride = s.kv_heads * s.size;
  const T* from = x + first * stride + head * s.size;
  if (straight) {
    for (int64_t j = 0; j < kKeyBlock; j++) {
      for_each_vec(s.size, [&](int64_t d, int n) {
        (j < count ? load(from + j * stride + d, n) : Vec::zero()).store(straight + j * s.padded + d);
      });
    }
  }
  if (transposed) transpose_keys([&](int64_t j) { return from + j * stride; }, count, s.size, kKeyBlock, transposed);
}

template <class T>
void pack_all(qt_stream* stream, const T* x, const AttentionShape& s, const PackedBlocks& to) {
  stream->parallel_for(s.kv_heads * s.plan.key_blocks, [&](int64_t task) {
    pack_block(x, s, task / s.plan.key_blocks, task % s.plan.key_blocks,
               to.straight ? to.straight + task * kKeyBlock * s.padded : nullptr,
               to.transposed ? to.transposed + task * kKeyBlock * s.size : nullptr);
  });
}

// The rows of one block of queries and one key head from [Tq, H, D], times `scale`, as float32 [queries * group, padded].
template <class T>
void pack_rows(const T* x, const AttentionShape& s, int64_t block, int64_t kv_head, float scale, float* to) {
  for (int64_t i = 0; i < s.block_queries(block); i++) {
    const T* from = x + ((block * kQueryBlock + i) * s.heads + kv_head * s.group) * s.size;
    for (int64_t h = 0; h < s.group; h++, from += s.size, to += s.padded) {
      for_each_vec(s.size, [&](int64_t d, int n) { (load(from + d, n) * Vec::broadcast(scale)).store(to + d); });
    }
  }
}

// ---- products --------------------------------------------------------------------------------------------------------

// The register tile: as many accumulators as leave room for a row of b and a broadcast of a.
#if defined(QT_CPU_AVX512)
constexpr int kTileRows = 6, kTileVecs = 4;
#elif defined(QT_CPU_AVX2)
constexpr int kTileRows = 6, kTileVecs = 2;
#else
constexpr int kTileRows = 2, kTileVecs = 2;
#endif

enum class Into { kOverwrite, kAdd, kDecay };  // c = ab, c = c + ab, c = c * decay[row] + ab

// One tile of c [R, V vectors]; a is [R, depth], or [depth, R] when transposed.
template <Into into, bool transposed, int R, int V>
inline void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c, int64_t ldc,
                          const float* decay) {
  Vec sum[R][V];
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) {
      if constexpr (into == Into::kOverwrite)
        sum[r][v] = Vec::zero();
      else
        sum[r][v] = Vec::load(c + r * ldc + v * Vec::width);
      if constexpr (into == Into::kDecay) sum[r][v] = sum[r][v] * Vec::broadcast(decay[r]);
    }
  }
  for (int64_t k = 0; k < depth; k++) {
    Vec x[V];
    for (int v = 0; v < V; v++) x[v] = Vec::load(b + k * ldb + v * Vec::width);
    for (int r = 0; r < R; r++) {
      const Vec y = Vec::broadcast(transposed ? a[k * lda + r] : a[r * lda + k]);
      for (int v = 0; v < V; v++) sum[r][v] = fma(y, x[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) sum[r][v].store(c + r * ldc + v * Vec::width);
  }
}

// All rows of one column strip of V vectors, in tiles of kTileRows and then 4, 2, 1 rows.
template <Into into, bool transposed, int V>
void multiply_strip(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t rows, int64_t depth, float* c,
                    int64_t ldc, const float* decay) {
  int64_t r = 0;
  auto from = [&](int64_t row) { return transposed ? a + row : a + row * lda; };
  for (; r + kTileRows <= rows; r += kTileRows) {
    multiply_tile<into, transposed, kTileRows, V>(from(r), lda, b, ldb, depth, c + r * ldc, ldc, decay + r);
  }
  for (; kTileRows > 4 && r + 4 <= rows; r += 4) {
    multiply_tile<into, transposed, 4, V>(from(r), lda, b, ldb, depth, c + r * ldc, ldc, decay + r);
  }
  for (; kTileRows > 2 && r + 2 <= rows; r += 2) {
    multiply_tile<into, transposed, 2, V>(from(r), lda, b, ldb, depth, c + r * ldc, ldc, decay + r);
  }
  for (; r < rows; r++) multiply_tile<into, transposed, 1, V>(from(r), lda, b, ldb, depth, c + r * ldc, ldc, decay + r);
}

// c [rows, columns] from a [rows, depth] (transposed: [depth, rows]) and b [depth, columns]; columns are whole vectors, spread
// evenly over strips.
template <Into into, bool transposed>
void multiply(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t rows, int64_t columns, int64_t depth, float* c,
              int64_t ldc, const float* decay = nullptr) {
  static const float kUnused[1] = {0};
  if (!decay) decay = kUnused;
  int64_t vecs = columns / Vec::width;
  for (int64_t strips = ceil_div(vecs, kTileVecs); strips > 0; strips--) {
    const int64_t wide = ceil_div(vecs, strips);
    if constexpr (kTileVecs >= 4) {
      if (wide == 4) multiply_strip<into, transposed, 4>(a, lda, b, ldb, rows, depth, c, ldc, decay);
      if (wide == 3) multiply_strip<into, transposed, 3>(a, lda, b, ldb, rows, depth, c, ldc, decay);
    }
    if (wide == 2) multiply_strip<into, transposed, 2>(a, lda, b, ldb, rows, depth, c, ldc, decay);
    if (wide == 1) multiply_strip<into, transposed, 1>(a, lda, b, ldb, rows, depth, c, ldc, decay);
    b += wide * Vec::width;
    c += wide * Vec::width;
    vecs -= wide;
  }
}

// ---- scores ----------------------------------------------------------------------------------------------------------

// 2^x for x <= 0 (Cephes' polynomial, below 2 ulp); 2^-126 below that. NaN stays, but not in n, which becomes an integer.
inline Vec exp2_nonpositive(Vec x) {
  const Vec lowest = Vec::broadcast(-126.0f);
  x = max(lowest, x);
  const Vec n = round(max(x, lowest)), f = x - n;
  Vec p = Vec::broadcast(1.535336188319500e-4f);
  p = fma(p, f, Vec::broadcast(1.339887440266574e-3f));
  p = fma(p, f, Vec::broadcast(9.618437357674640e-3f));
  p = fma(p, f, Vec::broadcast(5.550332471162809e-2f));
  p = fma(p, f, Vec::broadcast(2.402264791363012e-1f));
  p = fma(p, f, Vec::broadcast(6.931472028550421e-1f));
  p = fma(p, f, Vec::broadcast(1.0f));
  return scale_by_power_of_two(p, n);
}

// Columns of a block of keys, in whole vectors.
struct Columns {
  int64_t begin, end;
};

// Stream indices and subtree ends of a block of keys as floats (exact below 2^24), for masks by comparison.
struct KeyBlock {
  float index[kKeyBlock], end[kKeyBlock];
  float last_end[kKeyBlock / Vec::width];  // the highest end in each vector of keys

  void read(const AttentionShape& s, int64_t block) {
    for (int64_t v = 0; v < kKeyBlock / Vec::width; v++) last_end[v] = 0;
    for (int64_t j = 0; j < kKeyBlock; j++) {
      const int64_t key = block * kKeyBlock + j;
      index[j] = static_cast<float>(key);
      end[j] = key < s.keys ? static_cast<float>(s.end[key]) : 0.0f;
      last_end[j / Vec::width] = end[j] > last_end[j / Vec::width] ? end[j] : last_end[j / Vec::width];
    }
  }
  // The columns between the first and the last that some of these queries can see: those of other branches and of later tokens
  // around them need not be computed.
  Columns visible(const float* stream_index, int64_t queries) const {
    float first = stream_index[0], last = first;
    for (int64_t r = 1; r < queries; r++) {
      first = stream_index[r] < first ? stream_index[r] : first;
      last = stream_index[r] > last ? stream_index[r] : last;
    }
    int64_t from = 0, to = kKeyBlock / Vec::width;
    while (to > 0 && (index[(to - 1) * Vec::width] > last || last_end[to - 1] <= first)) to--;
    while (from < to && last_end[from] <= first) from++;
    return {from * Vec::width, to * Vec::width};
  }
  // `value` where the query at stream index `row` sees key j, else `otherwise`.
  Vec select(int64_t j, float row, Vec value, Vec otherwise) const {
    const Vec seen = select_less(Vec::broadcast(row), Vec::load(end + j), value, otherwise);
    return select_less(Vec::broadcast(row), Vec::load(index + j), otherwise, seen);
  }
};

// Scratch memory for each worker, cut into float arrays whose starts stay aligned.
struct Workspace {
  char* memory;
  int64_t bytes, used;

  static int64_t need(int64_t floats) { return round_up(floats * 4, 64); }
  float* take(int64_t floats) {
    float* at = reinterpret_cast<float*>(memory + used);
    used += need(floats);
    return at;
  }
};

}  // namespace quantune::cpu::QT_CPU_VARIANT
