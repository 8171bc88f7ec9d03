// The plan of an attention: which tiles of keys each tile of queries sees, and the other way round. Built on the device from
// `rows` and `end` (attention_plan.cu), read by the forward and the backward.
//
// Queries and keys are cut into narrow tiles of 64; two of them make a wide tile, what one block of threads takes. A list names
// for each wide tile of queries the narrow tiles of keys that any of its queries may see, ascending, and for each wide tile of
// keys the narrow tiles of queries. Whether a tile is seen by all, some or none of *its own rows* a warp works out itself from
// the bounds (the lowest and highest row of a tile of queries, end of a tile of keys): so the plan does not depend on how many
// rows a warp takes. All tiles that nothing sees are skipped: in a tree of segments that is where the speed lies.
#pragma once
#include "device/types.h"
#include "stream.h"

namespace quantune::cuda {

constexpr int kNarrow = 64, kWide = 128;
constexpr int kMostHeadSize = 256;
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;

// The rows of some queries, or the ends of some keys: what is known of all of them at once.
struct Bounds {
  int lowest, highest;
};

// int32: a header (queries, keys), then the arrays below. 16-byte aligned.
struct AttentionPlan {
  int queries, keys;            // of the operands; the plan's own are in its header
  int wide_queries, wide_keys;  // tiles
  int32_t* header;              // [4]
  int32_t* rows;                // [wide_queries * 128] stream index of each query, -1 behind the last
  int32_t* ends;                // [wide_keys * 128] end of each key, 0 behind the last
  int32_t* query_bounds;        // [2 wide_queries, 2] lowest and highest row of a narrow tile; without queries INT32_MAX, -1
  int32_t* key_bounds;          // [2 wide_keys, 2] lowest and highest end of a narrow tile
  int32_t* key_lists;           // [wide_queries, 1 + 2 wide_keys] count, narrow tiles of keys
  int32_t* query_lists;         // [wide_keys, 1 + 2 wide_queries] count, narrow tiles of queries

  __host__ __device__ AttentionPlan(int32_t* data, int64_t query_count, int64_t key_count)
      : queries(static_cast<int>(query_count)),
        keys(static_cast<int>(key_count)),
        wide_queries(static_cast<int>(ceil_div<int64_t>(query_count, kWide))),
        wide_keys(static_cast<int>(ceil_div<int64_t>(key_count, kWide))),
        header(data),
        rows(header + 4),
        ends(rows + wide_queries * kWide),
        query_bounds(ends + wide_keys * kWide),
        key_bounds(query_bounds + 4 * wide_queries),
        key_lists(key_bounds + 4 * wide_keys),
        query_lists(key_lists + static_cast<int64_t>(wide_queries) * key_list_stride()) {}

  __host__ __device__ int key_list_stride() const { return 1 + 2 * wide_keys; }
  __host__ __device__ int query_list_stride() const { return 1 + 2 * wide_queries; }
  static int64_t size(int64_t queries, int64_t keys) {
    const int64_t a = ceil_div<int64_t>(queries, kWide), b = ceil_div<int64_t>(keys, kWide);
    return 4 + (kWide + 4) * (a + b) + a * (1 + 2 * b) + b * (1 + 2 * a);
  }

  __device__ Bounds rows_of_tile(int tile) const { return {query_bounds[2 * tile], query_bounds[2 * tile + 1]}; }
  __device__ Bounds ends_of_tile(int tile) const { return {key_bounds[2 * tile], key_bounds[2 * tile + 1]}; }
  __device__ int32_t* keys_of(int wide_tile) const { return key_lists + static_cast<int64_t>(wide_tile) * key_list_stride(); }
  __device__ int32_t* queries_of(int wide_tile) const {
    return query_lists + static_cast<int64_t>(wide_tile) * query_list_stride();
  }

  // Whether the plan was made for these operands.
  __device__ bool fits() const { return header[0] == queries && header[1] == keys; }
};

enum class Seen { kNone, kSome, kAll };

// What queries with rows in `rows` see of the keys [first, first + count) with ends in `ends`.
__device__ inline Seen seen(Bounds rows, int first, int count, Bounds ends) {
  if (rows.highest < first || ends.highest <= rows.lowest) return Seen::kNone;
  return first + count - 1 <= rows.lowest && rows.highest < ends.lowest ? Seen::kAll : Seen::kSome;
}
__device__ inline bool visible(int row, int key, int end) { return key <= row && row < end; }

// The operands of one attention as kernels get them.
struct AttentionShape {
  int queries, keys, heads, kv_heads, group, size;
};
inline AttentionShape attention_shape(const qt_tensor* q, const qt_tensor* k) {
  const int heads = static_cast<int>(q->shape[1]), kv_heads = static_cast<int>(k->shape[1]);
  return {static_cast<int>(q->shape[0]), static_cast<int>(k->shape[0]), heads, kv_heads, heads / kv_heads,
          static_cast<int>(q->shape[2])};
}

// What only the device can check of a call: that its rows are stream indices of keys and that the plan was made for its sizes.
struct AttentionChecks {
  const int32_t* rows;  // null: query i stands at i
  Report bad_row, bad_plan;
};
inline AttentionChecks attention_checks(qt_stream* stream, const qt_tensor* rows) {
  return {data_of<const int32_t>(rows), stream->report("rows[%lld] is %lld, expected 0 to %lld (the keys)"),
          stream->report("plan was made for %lld queries and %lld keys, not for these")};
}
// By all threads of the block that takes the queries [first, first + count); false where the plan must not be used.
__device__ inline bool check_call(const AttentionPlan& plan, const AttentionChecks& checks, int first, int count) {
  if (!plan.fits()) {
    checks.bad_plan.raise(plan.header[0], plan.header[1]);
    return false;
  }
  if (!checks.rows) return true;
  for (int i = first + static_cast<int>(threadIdx.x); i < first + count && i < plan.queries;
       i += static_cast<int>(blockDim.x)) {
    if (checks.rows[i] < 0 || checks.rows[i] >= plan.keys) checks.bad_row.raise(i, checks.rows[i], plan.keys - 1);
  }
  return true;
}
inline qt_status check_attention(qt_stream* stream, const AttentionShape& s, const qt_tensor* plan) {
  if (s.size > kMostHeadSize) {
    return stream->fail(QT_UNSUPPORTED, "attention serves head sizes up to %d, not %d", kMostHeadSize, s.size);
  }
  if (plan->elements < AttentionPlan::size(s.queries, s.keys)) {
    return stream->fail(QT_INVALID_ARGUMENT, "plan is too small for %d queries and %d keys", s.queries, s.keys);
  }
  return QT_OK;
}

}  // namespace quantune::cuda
