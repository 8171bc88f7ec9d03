// The general product: tiles of C are the tasks; each packs its own block of A and, panel by panel, its columns of B (nothing
// that one thread packed is read by another), and runs the microkernel over them.
#include "gemm.h"

#include <type_traits>

#include "gemm_kernel.h"
#include "gemm_pack.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

// A block of A [block_rows, Panel::max_depth] stays in the second-level cache while panels of B [max_depth, tile_columns] pass
// by.
#if defined(QT_CPU_AVX512)
constexpr int64_t max_block_rows = 516;
#else
constexpr int64_t max_block_rows = 192;
#endif

constexpr int64_t max_block_columns = 2048;
constexpr int64_t joined_k = 64;  // at most this much of a second product joins a block

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }

struct Job {
  const Product* products;
  int count;
  const Result* c;
  int64_t m, n;
  int64_t row_tiles, column_tiles;
  int64_t block_rows, block_columns;
  bool direct;  // C is float32 with contiguous rows: sums go there, else to a tile of floats that is converted at the end
};

template <class Word>
struct Scratch {
  Word *a, *b;
  float *line, *tile;
};

// k in equal blocks, multiples of 64 so that 4-bit blocks are not split.
template <class Word>
int64_t k_block(int64_t k) {
  return k ? round_up(ceil_div(k, ceil_div(k, Panel<Word>::max_depth)), 64) : 64;
}

// What one pass over the tile multiplies: a run of k of a product and, where it still fits, the next product's (an adapter's
// rank), so that C is not read and written again for a few columns.
struct Segment {
  const Product* product;
  int64_t k, depth, words;  // depth elements of k in so many words of a panel
};
struct Block {
  Segment segments[2];
  int count;
  int64_t words;
};
struct Cursor {
  int product;
  int64_t k;
};

template <class Word>
bool next_block(const Job& job, Cursor* at, Block* block) {
  *block = {};
  while (at->product < job.count && block->count < 2) {
    const Product& p = job.products[at->product];
    const int64_t step = k_block<Word>(p.k), depth = p.k - at->k < step ? p.k - at->k : step;
    if (block->count && (depth > joined_k || block->segments[0].product == &p)) break;
    const int64_t words = ceil_div(depth, Panel<Word>::elements);
    block->segments[block->count++] = {&p, at->k, depth, words};
    block->words += words;
    at->k += depth;
    if (at->k >= p.k) *at = {at->product + 1, 0};
  }
  return block->count > 0;
}

// Rows of B as they lie in memory serve the kernel as well as a panel when few rows of A pass over them.
template <class Word>
bool is_plain(const Factor& f) {
  return std::is_same<Word, float>::value && f.dtype == QT_FLOAT32 && f.outer_stride == 1;
}

// Rows of panel p when `rows` are dealt evenly into panels of at most tile_rows.
struct Panels {
  int64_t count, whole, larger;
  explicit Panels(int64_t rows) : count(ceil_div(rows, tile_rows)), whole(rows / count), larger(rows % count) {}
  int rows(int64_t p) const { return static_cast<int>(whole + (p < larger)); }
};

void store_tile(const Job& job, int64_t row, int64_t rows, int64_t column, int64_t columns, const float* tile, int64_t stride) {
  const Result& c = *job.c;
  with_storage(c.dtype, [&](auto type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    T* out = static_cast<T*>(c.data) + row * c.row_stride + column * c.column_stride;
    if (c.column_stride == 1) {
      for (int64_t i = 0; i < rows; i++) {
        T* to = out + i * c.row_stride;
        const float* from = tile + i * stride;
        for_each_vec(columns, [&](int64_t j, int n) {
          Vec x = n == Vec::width ? Vec::load(from + j) : Vec::load_partial(from + j, n);
          if (c.accumulate) x = x + (n == Vec::width ? Vec::load(to + j) : Vec::load_partial(to + j, n));
          if (n == Vec::width)
            x.store(to + j);
          else
            x.store_partial(to + j, n);
        });
      }
      return;
    }
    for (int64_t j = 0; j < columns; j++) {
      T* to = out + j * c.column_stride;
      for (int64_t i = 0; i < rows; i++) {
        const float x = tile[i * stride + j];
        to[i * c.row_stride] = from_float<T>(c.accumulate ? to_float(to[i * c.row_stride]) + x : x);
      }
    }
  });
}

template <class Word>
void compute_tile(const Job& job, int64_t task, const Scratch<Word>& s) {
  const int64_t row = task / job.column_tiles * job.block_rows, column = task % job.column_tiles * job.block_columns;
  const int64_t rows = job.m - row < job.block_rows ? job.m - row : job.block_rows;
  const int64_t columns = job.n - column < job.block_columns ? job.n - column : job.block_columns;
  const Result& c = *job.c;
  const Panels panels(rows);
  float* out = job.direct ? static_cast<float*>(c.data) + row * c.row_stride + column : s.tile;
  const int64_t stride = job.direct ? c.row_stride : round_up(job.block_columns, tile_columns);
  bool add = job.direct && c.accumulate, first = true;
  Block block;
  for (Cursor at = {}; next_block<Word>(job, &at, &block); add = true, first = false) {
    Word* to = s.a;
    int64_t from = row;
    for (int64_t q = 0; q < panels.count; q++) {
      const int height = panels.rows(q);
      for (int i = 0; i < block.count; i++) {
        const Segment& part = block.segments[i];
        pack_strip(part.product->a, from, height, height, part.k, part.depth, part.product->scale, to, s.line);
        to += height * part.words;
      }
      from += height;
    }
    for (int64_t j = 0; j < columns; j += tile_columns) {
      const int width = static_cast<int>(columns - j < tile_columns ? columns - j : tile_columns);
      const Word* b = s.b;
      int64_t b_stride = tile_columns;
      if (panels.count <= 2 && width == tile_columns && block.count == 1 && is_plain<Word>(block.segments[0].product->b)) {
        const Segment& part = block.segments[0];
        b_stride = part.product->b.k_stride;
        b = static_cast<const Word*>(part.product->b.data) + part.k * b_stride + column + j;
      } else {
        Word* panel = s.b;
        for (int i = 0; i < block.count; i++) {
          const Segment& part = block.segments[i];
          pack_strip(part.product->b, column + j, width, tile_columns, part.k, part.depth, 1.0f, panel, s.line);
          panel += part.words * tile_columns;
        }
      }
      TileTarget target = {out + j, stride, width, add, first && c.bias ? c.bias + column + j : nullptr};
      const Word* a = s.a;
      for (int64_t q = 0; q < panels.count; q++) {
        const int height = panels.rows(q);
        tile_kernels<Word>[height](block.words, a, b, b_stride, target);
        a += height * block.words;
        target.c += height * stride;
      }
    }
  }
  if (!job.direct) store_tile(job, row, rows, column, columns, s.tile, stride);
}

// Cuts C into tiles so that the threads are done soonest. Every tile packs its rows of A and its columns of B for itself, so
// wide tiles pack A less often and high ones B.
void cut(Job& job, int workers) {
  // Cycles for each step of k: of the products, and of packing (A is transposed, B is copied or looked up).
  constexpr double product = 1.0 / (2 * Vec::width), pack_a = 1.4, pack_b = 0.7;
  const int64_t wanted = workers > 4 ? 2 * workers : workers;  // of many threads some are slower
  const int64_t fewest_rows = ceil_div(job.m, max_block_rows), fewest_columns = ceil_div(job.n, max_block_columns);
  double best = 0;
  for (int64_t r = fewest_rows; r <= fewest_rows + wanted && (r == fewest_rows || job.m / r >= 4 * tile_rows); r++) {
    for (int64_t tiles = wanted; tiles <= 2 * wanted; tiles += wanted) {
      const int64_t most = ceil_div(tiles, r), c = most > fewest_columns ? most : fewest_columns;
      const int64_t rows = ceil_div(job.m, r), columns = round_up(ceil_div(job.n, c), tile_columns);
      const int64_t count = r * ceil_div(job.n, columns);
      const double area = static_cast<double>(rows * columns);
      const double time = static_cast<double>(ceil_div(count, workers)) *
                          (area * product + static_cast<double>(rows) * pack_a + static_cast<double>(columns) * pack_b);
      if (best > 0 && time >= best) continue;
      best = time;
      job.row_tiles = r;
      job.column_tiles = count / r;
      job.block_rows = rows;
      job.block_columns = columns;
    }
  }
}

template <class Word>
qt_status compute(qt_stream* stream, const Job& job) {
  const int workers = stream->workers();
  int64_t depth = joined_k;
  for (int i = 0; i < job.count; i++) {
    const int64_t step = k_block<Word>(job.products[i].k);
    if (step + joined_k > depth) depth = step + joined_k;
  }
  const int64_t words = depth / Panel<Word>::elements;
  const int64_t a_size = round_up(job.block_rows * words, 16) + 64, b_size = tile_columns * words + 64;
  const int64_t line_size = depth + 2 * tile_columns;
  const int64_t tile_size = job.direct ? 0 : job.block_rows * round_up(job.block_columns, tile_columns);
  const int64_t size = round_up(a_size + b_size + line_size + tile_size, 16);
  Word* scratch = stream->scratch_of<Word>(size * workers);
  if (!scratch) return out_of_scratch(stream, "matrix product");
  stream->parallel_for_worker(job.row_tiles * job.column_tiles, [&](int64_t task, int worker) {
    Word* base = scratch + size * worker;
    float* floats = reinterpret_cast<float*>(base + a_size + b_size);
    compute_tile<Word>(job, task, {base, base + a_size, floats, floats + line_size});
  });
  return QT_OK;
}

}  // namespace

qt_status gemm(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c, int compute_as) {
  if (m <= 0 || n <= 0) return QT_OK;
  if (is_small(m, n, products, count)) return gemm_small(stream, m, n, products, count, c, compute_as);
  Job job = {products, count, &c, m, n, 0, 0, 0, 0, c.dtype == QT_FLOAT32 && c.column_stride == 1};
  cut(job, stream->workers());
#if defined(QT_PAIRS)
  if (compute_as == QT_BFLOAT16) return compute<Pair>(stream, job);
#endif
  return compute<float>(stream, job);
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
