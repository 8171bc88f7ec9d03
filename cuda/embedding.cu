// Rows of tables: gathering them, adding to them, token embedding with optional trainable rows beside the table.
#include "elements.cuh"

namespace quantune::cuda {
namespace {

constexpr int kThreads = 256;

// ---- gather ----------------------------------------------------------------------------------------------------------

// A thread copies one unit (16 bytes where rows are aligned). Bound by memory: a row read, a row written.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Unit* out, const Unit* x, const int32_t* rows, int64_t count, int64_t units, int64_t limit, Report report) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count * units) return;
  const int64_t r = i / units, at = i - r * units;
  const int32_t row = rows[r];
  if (row >= 0 && row < limit)
    out[i] = x[row * units + at];
  else if (at == 0)
    report.raise(r, row, limit - 1);
}

// ---- adding rows in a fixed order ------------------------------------------------------------------------------------

// Where row t of `x` is added: `row(t)` tells destinations apart, -1 is none; `to(row)` is where the destination begins.
template <class Out>
struct ScatterTarget {
  Out* out;
  const int32_t* rows;
  int64_t width, limit;
  Report report;

  __device__ int64_t row(int64_t t) const { return rows[t] >= 0 && rows[t] < limit ? rows[t] : -1; }
  __device__ void refuse(int64_t t) const {
    if (row(t) < 0) report.raise(t, rows[t], limit - 1);
  }
  __device__ Out* to(int64_t row) const { return out + row * width; }
};

// Where the vector of a token lives: a row of the table, or one of the trainable rows that stand beside it.
struct Lookup {
  const int32_t *ids, *row_of;
  int64_t table_rows, extra_rows, map_size;
  Report bad_id, bad_row;

  __device__ int64_t extra(int64_t id) const { return row_of && id >= 0 && id < map_size ? row_of[id] : -1; }
  __device__ bool valid(int64_t t) const {
    const int64_t id = ids[t], row = extra(id);
    return id >= 0 && row < extra_rows && (row >= 0 || id < table_rows);
  }
  __device__ void refuse(int64_t t) const {
    const int64_t id = ids[t], row = extra(id);
    if (id < 0 || (row < 0 && id >= table_rows))
      bad_id.raise(id, t, table_rows);
    else if (row >= extra_rows)
      bad_row.raise(id, row, extra_rows);
  }
};

// Rows of the table count from 0, trainable rows from kExtra. A gradient that is not asked for takes nothing.
struct EmbeddingTarget {
  static constexpr int64_t kExtra = int64_t{1} << 40;
  Lookup lookup;
  float *d_table, *d_rows;
  int64_t width;

  __device__ int64_t row(int64_t t) const {
    if (!lookup.valid(t)) return -1;
    const int64_t id = lookup.ids[t], extra = lookup.extra(id);
    if (extra >= 0) return d_rows ? kExtra + extra : -1;
    return d_table ? id : -1;
  }
  __device__ void refuse(int64_t t) const { lookup.refuse(t); }
  __device__ float* to(int64_t row) const { return row >= kExtra ? d_rows + (row - kExtra) * width : d_table + row * width; }
};

// True when no row before t has its destination.
template <class Target>
__device__ bool is_first(const Target& target, int64_t t, int64_t row) {
  constexpr int64_t kTile = 8 * kThreads;
  for (int64_t start = 0; start < t; start += kTile) {
    const int64_t end = start + kTile < t ? start + kTile : t;
    int found = 0;
    for (int64_t u = start + threadIdx.x; u < end; u += kThreads) found |= target.row(u) == row;
    if (block_max(found)) return false;
  }
  return true;
}

// Lists those of the rows [start, start + kThreads) that have the destination, in their order; returns how many.
template <class Target>
__device__ int list_matches(const Target& target, int64_t start, int64_t count, int64_t row, int* matches) {
  QT_SHARED(int, found_by_warp, kThreads / kWarp);
  const int64_t t = start + threadIdx.x;
  const bool match = t < count && target.row(t) == row;
  const unsigned mask = __ballot_sync(kFullMask, match);
  __syncthreads();  // the list before this one has been read
  if (lane_index() == 0) found_by_warp[warp_index()] = __popc(mask);
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kThreads / kWarp; w++) {
    if (w == warp_index()) before = total;
    total += found_by_warp[w];
  }
  if (match) matches[before + __popc(mask & ((1u << lane_index()) - 1))] = static_cast<int>(threadIdx.x);
  __syncthreads();
  return total;
}

// A block per row of x and 2048 columns. The block of the first row that goes to a destination adds all rows that go there, in
// their order, rounding as it would in memory; so there is no atomic addition and no order but this. Bound by memory (x once,
// the destinations once) as long as the index lists, which every block reads, are small beside the rows.
template <class Target, class Out, class In>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(Target target, Out*, const In* x, int64_t count, int64_t width, bool aligned) {
  QT_SHARED(int, matches, kThreads);
  const int64_t t = blockIdx.x, row = target.row(t);
  if (threadIdx.x == 0 && blockIdx.y == 0) target.refuse(t);
  if (row < 0 || !is_first(target, t, row)) return;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kEight, rest = width - column;
  Out* to = target.to(row) + column;
  Float8 sum{};
  if (rest > 0) sum = load8(to, rest, aligned);
  for (int64_t start = t; start < count; start += kThreads) {
    const int found = list_matches(target, start, count, row, matches);
    if (rest <= 0) continue;
    for (int m = 0; m < found; m++) {
      const Float8 values = load8(x + (start + matches[m]) * width + column, rest, aligned);
#pragma unroll
      for (int i = 0; i < kEight; i++) sum.v[i] = to_float(from_float<Out>(sum.v[i] + values.v[i]));
    }
  }
  if (rest > 0) store8(to, sum, rest, aligned);
}

template <class Out, class In, class Target>
qt_status add_rows(qt_stream* stream, const Target& target, const In* x, int64_t count, int64_t width, bool aligned) {
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(ceil_div<int64_t>(width, kThreads * kEight)));
  return launch(add_rows_kernel<Target, Out, In>, grid, kThreads, 0, stream, target, static_cast<Out*>(nullptr), x, count,
                width, aligned && width % kEight == 0);
}

// ---- embedding -------------------------------------------------------------------------------------------------------

// A thread takes eight columns of a token. Bound by memory: a row read, a row written.
template <class Y>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(Y* y, Lookup lookup, const void* table, int32_t table_dtype, const void* rows, int32_t rows_dtype,
                     int64_t tokens, int64_t width, bool aligned) {
  const int64_t eights = ceil_div<int64_t>(width, kEight), i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= tokens * eights) return;
  const int64_t t = i / eights, column = (i - t * eights) * kEight, rest = width - column;
  Float8 values;
  if (lookup.valid(t)) {
    const int64_t id = lookup.ids[t], extra = lookup.extra(id);
    values = extra >= 0 ? load8(rows, rows_dtype, extra * width + column, rest, aligned)
                        : load8(table, table_dtype, id * width + column, rest, aligned);
  } else {
    if (column == 0) lookup.refuse(t);
    for (int j = 0; j < kEight; j++) values.v[j] = NAN;
  }
  store8(y + t * width + column, values, rest, aligned);
}

Lookup make_lookup(qt_stream* stream, const qt_tensor* ids, const qt_tensor* row_of, int64_t table_rows, int64_t extra_rows) {
  return {data_of<const int32_t>(ids),
          data_of<const int32_t>(row_of),
          table_rows,
          extra_rows,
          row_of ? row_of->elements : 0,
          stream->report("token id %lld at index %lld is out of range: the table has %lld rows"),
          stream->report("row_of[%lld] is %lld, but rows has %lld rows")};
}

}  // namespace

qt_status gather_rows(qt_stream* stream, const qt_gather_rows_args* args) {
  const int64_t limit = rows_of(args->x), count = args->rows->elements;
  if (count == 0 || args->x->elements == 0) return QT_OK;
  const int64_t element = args->x->dtype == QT_FLOAT32 || args->x->dtype == QT_INT32 ? 4 : 2;
  const int64_t bytes = args->x->elements / limit * element;
  const Report report = stream->report("rows[%lld] is %lld, expected 0 to %lld (the rows of x)");
  auto start = [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
    return launch(gather_kernel<Unit>, ceil_div<int64_t>(count * units, kThreads), kThreads, 0, stream,
                  data_of<Unit>(args->out), data_of<const Unit>(args->x), data_of<const int32_t>(args->rows), count, units,
                  limit, report);
  };
  if (bytes % 16 == 0 && all_aligned(args->out->data, args->x->data)) return start(uint4{});
  return element == 4 ? start(uint32_t{}) : start(uint16_t{});
}

qt_status scatter_add_rows(qt_stream* stream, const qt_scatter_add_rows_args* args) {
  const int64_t limit = rows_of(args->out), count = args->rows->elements, width = limit ? args->out->elements / limit : 0;
  const Report report = stream->report("rows[%lld] is %lld, expected 0 to %lld (the rows of out)");
  return with_activation(args->out->dtype, [&](auto out_type) {
    return with_activation(args->x->dtype, [&](auto x_type) {
      using Out = decltype(out_type);
      using In = decltype(x_type);
      const ScatterTarget<Out> target{data_of<Out>(args->out), data_of<const int32_t>(args->rows), width, limit, report};
      return add_rows<Out>(stream, target, data_of<const In>(args->x), count, width,
                           all_aligned(args->out->data, args->x->data));
    });
  });
}

qt_status embedding(qt_stream* stream, const qt_embedding_args* args) {
  const int64_t width = last_of(args->table), tokens = args->ids->elements;
  const bool extra = args->rows && args->row_of;
  const Lookup lookup =
      make_lookup(stream, args->ids, extra ? args->row_of : nullptr, rows_of(args->table), extra ? rows_of(args->rows) : 0);
  const bool aligned = width % kEight == 0 && all_aligned(args->y->data, args->table->data, extra ? args->rows->data : nullptr);
  return with_activation(args->y->dtype, [&](auto y_type) {
    using Y = decltype(y_type);
    return launch(embedding_kernel<Y>, ceil_div<int64_t>(tokens * ceil_div<int64_t>(width, kEight), kThreads), kThreads, 0,
                  stream, data_of<Y>(args->y), lookup, args->table->data, args->table->dtype,
                  extra ? args->rows->data : nullptr, extra ? args->rows->dtype : QT_FLOAT32, tokens, width, aligned);
  });
}

qt_status embedding_backward(qt_stream* stream, const qt_embedding_backward_args* args) {
  const int64_t width = last_of(args->dy), tokens = args->ids->elements;
  // Without the gradient of one part, ids that belong to it are simply passed over.
  const EmbeddingTarget target{make_lookup(stream, args->ids, args->row_of, args->d_table ? rows_of(args->d_table) : INT32_MAX,
                                           args->d_rows ? rows_of(args->d_rows) : INT32_MAX),
                               data_of<float>(args->d_table), data_of<float>(args->d_rows), width};
  return with_activation(args->dy->dtype, [&](auto zero) {
    using In = decltype(zero);
    const bool aligned = all_aligned(args->dy->data, target.d_table, target.d_rows);
    return add_rows<float>(stream, target, data_of<const In>(args->dy), tokens, width, aligned);
  });
}

}  // namespace quantune::cuda
