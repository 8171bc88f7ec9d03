// attention_plan: see attention_plan.cuh. Two launches without a word to the host: bounds of every tile, then the lists.
#include <climits>

#include "attention_plan.cuh"
#include "device/launch.h"
#include "device/warp.h"
#include "kernels.h"

namespace quantune::cuda {
namespace {

constexpr int kThreads = 128;

// One warp a narrow tile of queries or keys, two rows or ends a lane: the padded copies and their bounds. Reads and writes each
// of them once; nothing for the device.
__global__ void plan_bounds(AttentionPlan plan, const int32_t* rows, const int32_t* end, Report bad_row, Report bad_end) {
  const int warp = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + warp_index(), lane = lane_index();
  if (warp == 0 && lane < 4) plan.header[lane] = lane == 0 ? plan.queries : lane == 1 ? plan.keys : 0;
  const bool of_queries = warp < 2 * plan.wide_queries;
  const int tile = of_queries ? warp : warp - 2 * plan.wide_queries;
  if (tile >= 2 * plan.wide_keys && !of_queries) return;
  int lowest = INT_MAX, highest = of_queries ? -1 : 0;
  for (int half = 0; half < 2; half++) {
    const int i = tile * kNarrow + half * kWarp + lane;
    if (of_queries) {
      int row = i < plan.queries ? rows ? rows[i] : i : -1;
      if (i < plan.queries && (row < 0 || row >= plan.keys)) bad_row.raise(i, row, plan.keys - 1);
      plan.rows[i] = row;
      if (i < plan.queries && row < lowest) lowest = row;
      if (row > highest) highest = row;
    } else {
      int value = i < plan.keys ? end[i] : 0;
      if (value < 0 || value > plan.keys) bad_end.raise(i, value, plan.keys);
      plan.ends[i] = value;
      if (value < lowest) lowest = value;
      if (value > highest) highest = value;
    }
  }
  lowest = warp_min(lowest);
  highest = warp_max(highest);
  int32_t* bounds = of_queries ? plan.query_bounds : plan.key_bounds;
  if (lane < 2) bounds[2 * tile + lane] = lane == 0 ? lowest : highest;
}

__device__ bool meet(const AttentionPlan& plan, int query_tile, int key_tile) {
  return seen(plan.rows_of_tile(query_tile), key_tile * kNarrow, kNarrow, plan.ends_of_tile(key_tile)) != Seen::kNone;
}

// One warp a list. Every pair of a wide and a narrow tile is looked at once for each direction: 2 T² / 8192 pairs, 32 a step.
__global__ void plan_lists(AttentionPlan plan) {
  const int list = static_cast<int>(blockIdx.x), lane = lane_index();
  const bool of_queries = list < plan.wide_queries;
  const int wide = of_queries ? list : list - plan.wide_queries;
  const int others = of_queries ? 2 * plan.wide_keys : 2 * plan.wide_queries;
  int32_t* to = of_queries ? plan.keys_of(wide) : plan.queries_of(wide);
  int count = 0;
  for (int base = 0; base < others; base += kWarp) {
    const int other = base + lane;
    bool listed = false;
    for (int half = 0; half < 2 && other < others; half++) {
      const int narrow = 2 * wide + half;
      listed = listed || (of_queries ? meet(plan, narrow, other) : meet(plan, other, narrow));
    }
    const unsigned chosen = __ballot_sync(kFullMask, listed);
    if (listed) to[1 + count + __popc(chosen & ((1u << lane) - 1))] = other;
    count += __popc(chosen);
  }
  if (lane == 0) to[0] = count;
}

}  // namespace

int64_t attention_plan_size(int64_t queries, int64_t keys) { return AttentionPlan::size(queries, keys); }

qt_status attention_plan(qt_stream* stream, const qt_attention_plan_args* args) {
  const int64_t keys = args->end->elements, size = attention_plan_size(args->queries, keys);
  if (args->queries >= INT_MAX / 2 || keys >= INT_MAX / 2) {
    return stream->fail(QT_UNSUPPORTED, "attention serves fewer than 2^30 queries and keys");
  }
  if (args->plan->elements < size) {
    return stream->fail(QT_INVALID_ARGUMENT, "plan has %lld elements, expected %lld",
                        static_cast<long long>(args->plan->elements), static_cast<long long>(size));
  }
  const AttentionPlan plan(data_of<int32_t>(args->plan), args->queries, keys);
  const int warps = 2 * (plan.wide_queries + plan.wide_keys);
  qt_status status = launch(plan_bounds, warps ? ceil_div(warps, kThreads / kWarp) : 1, kThreads, 0, stream, plan,
                            data_of<const int32_t>(args->rows), data_of<const int32_t>(args->end),
                            stream->report("rows[%lld] is %lld, expected 0 to %lld (the keys)"),
                            stream->report("end[%lld] is %lld, expected 0 to %lld"));
  if (status != QT_OK) return status;
  return launch(plan_lists, plan.wide_queries + plan.wide_keys, kWarp, 0, stream, plan);
}

}  // namespace quantune::cuda
