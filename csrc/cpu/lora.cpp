// The narrow products of an adapter of rank r beside a linear layer of k inputs and n outputs:
//   h = x Aᵀ, t = dy B: rows of the wide matrix meet a panel of the rank's vectors; broadcasts come straight from the rows.
//   dA = tᵀ x, dBᵀ = hᵀ dy: outer products summed over a block of rows, a tile of (rank, columns) in registers.
// They do 4 r flop for each number of x and dy that they read (r = 16: 11 GB/s at a core's peak), so packing would cost more
// than it saves; a block of rows stays in the second-level cache while all its products are made.
#include "lora.h"

#include <type_traits>

#include "gemm_pack.h"
#include "simd/prefetch.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

constexpr int width = Vec::width;

// Rows of a tile against one or two vectors of rank; ranks of a tile against vectors of columns. Each leaves room for the
// vectors and a broadcast.
#if defined(QT_CPU_AVX512)
constexpr int down_rows = 12, outer_ranks = 8, outer_vecs = 3;
#elif defined(QT_CPU_AVX2)
constexpr int down_rows = 6, outer_ranks = 4, outer_vecs = 3;
#else
constexpr int down_rows = 4, outer_ranks = 4, outer_vecs = 1;
#endif

// Rows of a block (with 1536 columns, 750 KB of the 2 MB that a core with AVX-512 usually has, half of that elsewhere), and how
// many tasks there are at most: each sums into memory of its own.
#if defined(QT_CPU_AVX512)
constexpr int64_t most_block_rows = 120;
#else
constexpr int64_t most_block_rows = 60;
#endif
constexpr int64_t most_tasks = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- rows times a narrow panel -------------------------------------------------------------------------------------------

// out [R, V vectors] = x [R, k] panel [k, V vectors]; rows of x and panel are so many floats apart.
template <int R, int V>
void down_tile(const float* x, int64_t stride, const float* panel, int64_t padded, int64_t k, float* out, int64_t out_stride) {
  Vec sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = Vec::zero();
  const float* const ahead = x + R * stride;
  for (int64_t i = 0; i < k;) {
    const int64_t end = least(i + cache_line, k);
    // The next rows: the hardware does not follow a dozen at once.
    for (int r = 0; r < R; r++) prefetch(ahead + r * stride + i);
    for (; i < end; i++, panel += padded) {
      Vec b[V];
      for (int v = 0; v < V; v++) b[v] = Vec::load(panel + v * width);
      for (int r = 0; r < R; r++) {
        const Vec a = Vec::broadcast(x[r * stride + i]);
        for (int v = 0; v < V; v++) sum[r][v] = fma(a, b[v], sum[r][v]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v].store(out + r * out_stride + v * width);
}

template <int V>
void down_strip(const float* x, int64_t stride, const float* panel, int64_t padded, int64_t rows, int64_t k, float* out) {
  int64_t r = 0;
  for (; r + down_rows <= rows; r += down_rows)
    down_tile<down_rows, V>(x + r * stride, stride, panel, padded, k, out + r * padded, padded);
  for (; down_rows > 4 && r + 4 <= rows; r += 4)
    down_tile<4, V>(x + r * stride, stride, panel, padded, k, out + r * padded, padded);
  for (; r < rows; r++) down_tile<1, V>(x + r * stride, stride, panel, padded, k, out + r * padded, padded);
}

// out [rows, padded] = x [rows, k] panel [k, padded]; padded is a multiple of the vector width.
void down_block(const float* x, int64_t stride, const float* panel, int64_t padded, int64_t rows, int64_t k, float* out) {
  int64_t j = 0;
  for (; j + 2 * width <= padded; j += 2 * width) down_strip<2>(x, stride, panel + j, padded, rows, k, out + j);
  if (j < padded) down_strip<1>(x, stride, panel + j, padded, rows, k, out + j);
}

// ---- sums of outer products ------------------------------------------------------------------------------------------------

// sum [R, columns] (+)= s [rows, R]ᵀ x [rows, columns], for V vectors of columns, the last of them with `last` lanes.
template <int R, int V>
void outer_tile(const float* s, int64_t s_stride, const float* x, int64_t stride, int64_t rows, int last, float* sum,
                int64_t sum_stride, bool add) {
  Vec c[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) c[r][v] = add ? Vec::load(sum + r * sum_stride + v * width) : Vec::zero();
  for (int64_t i = 0; i < rows; i++, s += s_stride, x += stride) {
    Vec b[V];
    for (int v = 0; v < V - 1; v++) b[v] = Vec::load(x + v * width);
    b[V - 1] = last == width ? Vec::load(x + (V - 1) * width) : Vec::load_partial(x + (V - 1) * width, last);
    for (int j = 0; j < V * width; j += cache_line) prefetch(x + V * width + j);  // the next strip of this row
    for (int r = 0; r < R; r++) {
      const Vec a = Vec::broadcast(s[r]);
      for (int v = 0; v < V; v++) c[r][v] = fma(a, b[v], c[r][v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) c[r][v].store(sum + r * sum_stride + v * width);
}

template <int V>
void outer_strip(const float* s, int64_t ranks, const float* x, int64_t stride, int64_t rows, int last, float* sum,
                 int64_t sum_stride, bool add, int64_t s_stride) {
  int64_t r = 0;
  for (; r + outer_ranks <= ranks; r += outer_ranks)
    outer_tile<outer_ranks, V>(s + r, s_stride, x, stride, rows, last, sum + r * sum_stride, sum_stride, add);
  for (; outer_ranks > 4 && r + 4 <= ranks; r += 4)
    outer_tile<4, V>(s + r, s_stride, x, stride, rows, last, sum + r * sum_stride, sum_stride, add);
  for (; r < ranks; r++) outer_tile<1, V>(s + r, s_stride, x, stride, rows, last, sum + r * sum_stride, sum_stride, add);
}

// sum [ranks, columns] (+)= s [rows, ranks]ᵀ x [rows, columns]; a row of sum has room for whole vectors.
void outer_block(const float* s, int64_t s_stride, int64_t ranks, const float* x, int64_t stride, int64_t rows, int64_t columns,
                 float* sum, int64_t sum_stride, bool add) {
  constexpr int64_t strip = outer_vecs * width;
  int64_t j = 0;
  for (; j + strip <= columns; j += strip)
    outer_strip<outer_vecs>(s, ranks, x + j, stride, rows, width, sum + j, sum_stride, add, s_stride);
  for (; j < columns; j += width) {
    const int last = static_cast<int>(least(columns - j, width));
    outer_strip<1>(s, ranks, x + j, stride, rows, last, sum + j, sum_stride, add, s_stride);
  }
}

// ---- operands
// ----------------------------------------------------------------------------------------------------------------

struct Rows {
  const float* data;
  int64_t stride;
};

// Rows [first, first + count) of k elements as float32: where they lie, or converted into `space`.
Rows float_rows(const Factor& f, int64_t first, int64_t count, int64_t k, float* space) {
  if (f.dtype == QT_FLOAT32) return {static_cast<const float*>(f.data) + first * f.outer_stride, f.outer_stride};
  for (int64_t i = 0; i < count; i++) widen(f.data, f.dtype, (first + i) * f.outer_stride, k, space + i * k);
  return {space, k};
}

int64_t floats_for(const Factor& f, int64_t rows, int64_t k) { return f.dtype == QT_FLOAT32 ? 0 : round_up(rows * k, 16); }

// [k, padded]: the ranks of f, an outer index each, as lanes.
const float* panel_of(qt_stream* stream, const Factor& f, int64_t rank, int64_t padded, int64_t k) {
  float* panel = stream->scratch_of<float>(k * padded + width);
  float* line = stream->scratch_of<float>(k + width);
  if (panel && line) pack_strip(f, 0, static_cast<int>(rank), static_cast<int>(padded), 0, k, 1.0f, panel, line);
  return line ? panel : nullptr;
}

void store_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, int64_t first, const Result& to) {
  with_storage(to.dtype, [&](auto type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t i = 0; i < rows; i++) {
      T* out = static_cast<T*>(to.data) + (first + i) * to.row_stride;
      for_each_vec(columns, [&](int64_t j, int n) {
        const Vec x = Vec::load(from + i * stride + j);
        if (n == width)
          x.store(out + j);
        else
          x.store_partial(out + j, n);
      });
    }
  });
}

// Blocks of rows: eight where m is small, so that there is work for several threads.
int64_t block_rows(int64_t m) { return least(round_up(ceil_div(m, 8), down_rows), most_block_rows); }

// ---- adding up
// -----------------------------------------------------------------------------------------------------------------

// The sums of tasks [tasks][ranks, stride] that one gradient is made of.
struct Parts {
  const float* data;
  int64_t tasks, ranks, columns, stride;

  Vec sum(int64_t rank, int64_t column) const {
    const float* from = data + rank * stride + column;
    Vec total = Vec::load(from);
    for (int64_t task = 1; task < tasks; task++) total = total + Vec::load(from + task * ranks * stride);
    return total;
  }
};

// d_a [ranks, columns] += scale * the sum of the parts, for columns [from, to).
void add_rows(const Parts& parts, float scale, int64_t from, int64_t to, float* d_a) {
  for (int64_t r = 0; r < parts.ranks; r++) {
    for_each_vec(to - from, [&](int64_t j, int n) {
      float* out = d_a + r * parts.columns + from + j;
      const Vec x = parts.sum(r, from + j);
      if (n == width)
        fma(x, Vec::broadcast(scale), Vec::load(out)).store(out);
      else
        fma(x, Vec::broadcast(scale), Vec::load_partial(out, n)).store_partial(out, n);
    });
  }
}

// d_b [columns, ranks] += scale * the transposed sum of the parts, for columns [from, to).
void add_columns(const Parts& parts, float scale, int64_t from, int64_t to, float* d_b) {
  for (int64_t j = from; j < to; j += width) {
    for (int64_t r = 0; r < parts.ranks; r += width) {
      const int ranks = static_cast<int>(least(parts.ranks - r, width));
      Vec square[width];
      for (int i = 0; i < width; i++) square[i] = i < ranks ? parts.sum(r + i, j) : Vec::zero();
      transpose(square);
      for (int i = 0; i < width && j + i < to; i++) {
        float* out = d_b + (j + i) * parts.ranks + r;
        fma(square[i], Vec::broadcast(scale), Vec::load_partial(out, ranks)).store_partial(out, ranks);
      }
    }
  }
}

template <class Add>
void add_parts(qt_stream* stream, const Parts& parts, const Add& add) {
  constexpr int64_t columns = 128;
  stream->parallel_for(ceil_div(parts.columns, columns),
                       [&](int64_t task) { add(task * columns, least(parts.columns, (task + 1) * columns)); });
}

}  // namespace

qt_status lora_down(qt_stream* stream, const Factor& x, const Factor& b, int64_t m, int64_t r, int64_t k, const Result& h) {
  const int64_t padded = round_up(r, width), rows = least(block_rows(m), 4 * down_rows), floats = floats_for(x, rows, k);
  const float* panel = panel_of(stream, b, r, padded, k);
  float* space = stream->scratch_of<float>(stream->workers() * (floats + rows * padded));
  if (!panel || !space) return out_of_scratch(stream, "linear");
  stream->parallel_for_worker(ceil_div(m, rows), [&](int64_t task, int worker) {
    const int64_t first = task * rows, count = least(rows, m - first);
    float* out = space + worker * (floats + rows * padded);
    const Rows from = float_rows(x, first, count, k, out + rows * padded);
    down_block(from.data, from.stride, panel, padded, count, k, out);
    store_rows(out, padded, count, r, first, h);
  });
  return QT_OK;
}

qt_status lora_backward(qt_stream* stream, const Linear& w, const LoraBackward& o) {
  const int64_t m = row_count(o.dy), n = w.n, k = w.k, r = w.rank(), padded = round_up(r, width);
  const Factor dy = rows_of(o.dy), x = rows_of(o.x);
  Factor h = {};
  if (o.d_b && o.h) h = rows_of(o.h);
  const int64_t rows = block_rows(m), blocks = ceil_div(m, rows), tasks = least(blocks, most_tasks);
  const int64_t a_stride = round_up(k, width), b_stride = round_up(n, width);
  const float* up = o.t ? panel_of(stream, columns_of(w.lora_b), r, padded, n) : nullptr;
  const float* down = o.d_b && !o.h ? panel_of(stream, rows_of(w.lora_a), r, padded, k) : nullptr;
  float* a_parts = o.d_a ? stream->scratch_of<float>(tasks * r * a_stride) : nullptr;
  float* b_parts = o.d_b ? stream->scratch_of<float>(tasks * r * b_stride) : nullptr;
  const int64_t dy_floats = floats_for(dy, rows, n), x_floats = floats_for(x, rows, k), narrow_floats = rows * padded;
  const int64_t floats = dy_floats + x_floats + 2 * narrow_floats;
  float* space = stream->scratch_of<float>(stream->workers() * floats);
  if (!space || (o.t && !up) || (o.d_b && !o.h && !down) || (o.d_a && !a_parts) || (o.d_b && !b_parts))
    return out_of_scratch(stream, "linear_backward");
  stream->parallel_for_worker(tasks, [&](int64_t task, int worker) {
    float *t_space = space + worker * floats, *h_space = t_space + narrow_floats, *wide = h_space + narrow_floats;
    const int64_t begin = blocks * task / tasks, end = blocks * (task + 1) / tasks;
    for (int64_t block = begin; block < end; block++) {
      const int64_t first = block * rows, count = least(rows, m - first);
      const bool add = block > begin;
      const Rows dys = float_rows(dy, first, count, n, wide);
      Rows xs = {};
      if (o.d_a || down) xs = float_rows(x, first, count, k, wide + dy_floats);
      if (o.t) {
        down_block(dys.data, dys.stride, up, padded, count, n, t_space);
        store_rows(t_space, padded, count, r, first, result_of(o.t, r, false));
      }
      if (o.d_b) {
        Rows hs = {h_space, padded};
        if (down)
          down_block(xs.data, xs.stride, down, padded, count, k, h_space);
        else
          hs = float_rows(h, first, count, r, h_space);
        outer_block(hs.data, hs.stride, r, dys.data, dys.stride, count, n, b_parts + task * r * b_stride, b_stride, add);
      }
      if (o.d_a) outer_block(t_space, padded, r, xs.data, xs.stride, count, k, a_parts + task * r * a_stride, a_stride, add);
    }
  });
  if (o.d_a) {
    const Parts parts = {a_parts, tasks, r, k, a_stride};
    add_parts(stream, parts, [&](int64_t from, int64_t to) { add_rows(parts, w.lora_scale, from, to, o.d_a); });
  }
  if (o.d_b) {
    const Parts parts = {b_parts, tasks, r, n, b_stride};
    add_parts(stream, parts, [&](int64_t from, int64_t to) { add_columns(parts, w.lora_scale, from, to, o.d_b); });
  }
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
