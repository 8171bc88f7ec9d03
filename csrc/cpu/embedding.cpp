// Token embedding with optional trainable rows beside the table, and its gradient.
#include "dispatch.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

// Where the vectors of a call live; row(id) < 0 means the table.
struct Lookup {
  const int32_t* row_of;
  int64_t table_rows, extra_rows, map_size;

  int32_t row(int32_t id) const { return row_of && id < map_size ? row_of[id] : -1; }
};

qt_status check_ids(qt_stream* stream, const qt_tensor* ids, const Lookup& lookup) {
  const int32_t* id = data_of<const int32_t>(ids);
  for (int64_t t = 0; t < ids->elements; t++) {
    int32_t row = id[t] < 0 ? -1 : lookup.row(id[t]);
    if (id[t] < 0 || (row < 0 && id[t] >= lookup.table_rows)) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT,
                                "token id %d at index %lld is out of range: the table has %lld rows", id[t],
                                static_cast<long long>(t), static_cast<long long>(lookup.table_rows));
    }
    if (row >= lookup.extra_rows) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "row_of[%d] is %d, but rows has %lld rows", id[t], row,
                                static_cast<long long>(lookup.extra_rows));
    }
  }
  return QT_OK;
}

}  // namespace

qt_status embedding(qt_stream* stream, const qt_embedding_args* args) {
  const int64_t width = last_of(args->table), tokens = args->ids->elements;
  const int32_t* ids = data_of<const int32_t>(args->ids);
  const bool extra = args->rows && args->row_of;
  const Lookup lookup{extra ? data_of<const int32_t>(args->row_of) : nullptr, rows_of(args->table),
                      extra ? rows_of(args->rows) : 0, extra ? args->row_of->elements : 0};
  qt_status status = check_ids(stream, args->ids, lookup);
  if (status != QT_OK) return status;
  return with_activation(stream, args->y->dtype, [&](auto y_type) {
    return with_float(stream, args->table->dtype, [&](auto table_type) {
      return with_float(stream, extra ? args->rows->dtype : static_cast<int32_t>(QT_FLOAT32), [&](auto rows_type) {
        const auto* table = data_of<const decltype(table_type)>(args->table);
        const auto* rows = data_of<const decltype(rows_type)>(args->rows);
        for_chunks(stream, tokens, rows_per_task(width), [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; t++) {
            auto* y = data_of<decltype(y_type)>(args->y) + t * width;
            const int32_t row = lookup.row(ids[t]);
            if (row >= 0)
              for_each_vec(width, [&](int64_t i, int n) { store(load(rows + row * width + i, n), y + i, n); });
            else
              for_each_vec(width, [&](int64_t i, int n) { store(load(table + ids[t] * width + i, n), y + i, n); });
          }
        });
        return QT_OK;
      });
    });
  });
}

// Tokens repeat, so a task owns a range of columns and adds all tokens to it in their order.
qt_status embedding_backward(qt_stream* stream, const qt_embedding_backward_args* args) {
  const int64_t width = last_of(args->dy), tokens = args->ids->elements;
  const int32_t* ids = data_of<const int32_t>(args->ids);
  // Without the gradient of one part, ids that belong to it are simply passed over.
  const Lookup lookup{data_of<const int32_t>(args->row_of), args->d_table ? rows_of(args->d_table) : INT32_MAX,
                      args->d_rows ? rows_of(args->d_rows) : INT32_MAX, args->row_of ? args->row_of->elements : 0};
  qt_status status = check_ids(stream, args->ids, lookup);
  if (status != QT_OK) return status;
  return with_activation(stream, args->dy->dtype, [&](auto zero) {
    const auto* dy = data_of<const decltype(zero)>(args->dy);
    float *d_table = data_of<float>(args->d_table), *d_rows = data_of<float>(args->d_rows);
    for_chunks(stream, width, 128, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < tokens; t++) {
        const int32_t row = lookup.row(ids[t]);
        float* to = row >= 0 ? d_rows : d_table;
        if (!to) continue;
        to += (row >= 0 ? row : ids[t]) * width;
        for_vectors(begin, end, [&](int64_t i, int n) { store(load(to + i, n) + load(dy + t * width + i, n), to + i, n); });
      }
    });
    return QT_OK;
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
