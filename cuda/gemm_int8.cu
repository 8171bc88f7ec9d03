// The products of LLM.int8. Many rows: tensor cores (mma.sync m16n8k32, int8 operands, int32 sums) on tiles as those of
// gemm_mma.cuh, a row's 128 bytes being as many codes. Few rows: a warp an output, four codes an instruction. Both scale their
// sums and add the outliers' columns, float32 products of x and the dequantized weight. The backward multiplies by the
// dequantized weight.
#include "device/launch.h"
#include "device/shared.h"
#include "device/warp.h"
#include "gemm_mma.cuh"
#include "int8.cuh"

namespace quantune::cuda {

namespace {

struct Int8Args {
  Int8Weight weight;
  Int8Input in;
  int64_t column_tiles, steps, steps_per_split;
  Epilogue epilogue;
};

// ---- tensor cores -----------------------------------------------------------------------------------------------------
//
// 2 m n k operations. A block of 128 x 128 reads 32 KB from the second-level cache for 4.2 million of them a step, 128 a byte:
// the tensor cores bound it. mma_tiles.cuh's tiles are of 16-bit elements; here each is two codes, and the fragments of
// m16n8k32 lie in them as those of m16n8k16 do.

constexpr int kStepBytes = 2 * kStepDepth, kOutliers = 16;  // of k, a step; outliers' columns at a time

template <int rows_, int columns_, int warp_rows_, int warp_columns_, int stages_>
struct Int8Shape {
  static constexpr int rows = rows_, columns = columns_, warp_rows = warp_rows_, warp_columns = warp_columns_, stages = stages_;
  static constexpr int threads = rows / warp_rows * (columns / warp_columns) * kWarp;
};
using Int8Wide = Int8Shape<128, 128, 64, 32, 3>;
using Int8Flat = Int8Shape<64, 64, 32, 16, 4>;  // where those do not fill the device

template <class Shape>
struct Int8Tiles {
  bf16 *a, *b;
  __host__ __device__ explicit Int8Tiles(SharedCarver& carve) {
    a = carve.array<bf16>(Shape::stages * Shape::rows * kStepDepth, 128);
    b = carve.array<bf16>(Shape::stages * Shape::columns * kStepDepth, 128);
    static_assert(kOutliers * sizeof(float) <= Shape::stages * kStepDepth * sizeof(bf16), "the outliers fit into the tiles");
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads) int8_mma_kernel(const Int8Args args) {
  constexpr int kThreads = Shape::threads, kStages = Shape::stages;
  constexpr int kRowTiles = Shape::warp_rows / 16, kColumnTiles = Shape::warp_columns / 8;
  SharedCarver carve = dynamic_shared();
  const Int8Tiles<Shape> tiles(carve);
  const Epilogue& e = args.epilogue;
  const int64_t row = blockIdx.x / args.column_tiles * Shape::rows, column = blockIdx.x % args.column_tiles * Shape::columns;
  const int64_t begin = blockIdx.y * args.steps_per_split;
  int64_t end = begin + args.steps_per_split;
  if (end > args.steps) end = args.steps;
  const int64_t stride = args.weight.row_bytes / 2;
  const DenseFactor a = {reinterpret_cast<const bf16*>(args.in.codes), stride};
  const DenseFactor b = {reinterpret_cast<const bf16*>(args.weight.codes), stride};
  auto load = [&](int64_t step, int slot) {
    const int64_t k = step * kStepDepth;
    copy_tile<Shape::rows, false, kThreads>(tiles.a + slot * Shape::rows * kStepDepth, a, row, e.m, k, stride);
    copy_tile<Shape::columns, false, kThreads>(tiles.b + slot * Shape::columns * kStepDepth, b, column, e.n, k, stride);
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (begin + s < end) load(begin + s, s);
    async_commit();
  }
  const int warp = warp_index(), warp_row = warp % (Shape::rows / Shape::warp_rows) * Shape::warp_rows,
            warp_column = warp / (Shape::rows / Shape::warp_rows) * Shape::warp_columns;
  int32_t sums[kRowTiles][kColumnTiles][4] = {};
  for (int64_t step = begin; step < end; step++) {
    const int at = static_cast<int>(step - begin);
    async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < end) load(step + kStages - 1, (at + kStages - 1) % kStages);
    async_commit();
    const bf16* tile_a = tiles.a + at % kStages * Shape::rows * kStepDepth;
    const bf16* tile_b = tiles.b + at % kStages * Shape::columns * kStepDepth;
#pragma unroll
    for (int k = 0; k < kStepDepth; k += 16) {
      uint32_t left[kRowTiles][4], right[kColumnTiles / 2][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) load_a<Shape::rows, false>(left[i], tile_a, warp_row + i * 16, k);
#pragma unroll
      for (int j = 0; j < kColumnTiles / 2; j++) load_b<Shape::columns, false>(right[j], tile_b, warp_column + j * 16, k);
#pragma unroll
      for (int i = 0; i < kRowTiles; i++)
#pragma unroll
        for (int j = 0; j < kColumnTiles; j++) {
          const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          mma_int8(sums[i][j], left[i], pair);
        }
    }
  }
  async_wait<0>();

  // Sums of codes become values; the first part of k adds the outliers.
  const int g = lane_index() / 4, t = lane_index() % 4;
  float values[kRowTiles][kColumnTiles][4];
#pragma unroll
  for (int i = 0; i < kRowTiles; i++)
#pragma unroll
    for (int j = 0; j < kColumnTiles; j++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int64_t r = row + warp_row + i * 16 + g + part / 2 * 8, c = column + warp_column + j * 8 + 2 * t + part % 2;
        const float scale = r < e.m && c < e.n ? args.in.absmax[r] * args.weight.absmax[c] * (1.0f / (127.0f * 127.0f)) : 0.0f;
        values[i][j][part] = static_cast<float>(sums[i][j][part]) * scale;
      }
  // [kOutliers][rows] and [kOutliers][columns], in the place of the tiles: both would be more than a block of sm_86 has.
  float *outliers_x = reinterpret_cast<float*>(tiles.a), *outliers_w = reinterpret_cast<float*>(tiles.b);
  const int count = blockIdx.y == 0 ? *args.in.count : 0;
  for (int first = 0; first < count; first += kOutliers) {
    __syncthreads();  // all have done with the tiles, or with the columns before
    for (int at = static_cast<int>(threadIdx.x); at < kOutliers * Shape::rows; at += kThreads) {
      const int o = first + at / Shape::rows;
      const int64_t r = row + at % Shape::rows;
      outliers_x[at] = o < count && r < e.m ? args.in.at(r, args.in.outliers[o]) : 0.0f;
    }
    for (int at = static_cast<int>(threadIdx.x); at < kOutliers * Shape::columns; at += kThreads) {
      const int o = first + at / Shape::columns;
      const int64_t c = column + at % Shape::columns;
      outliers_w[at] = o < count && c < e.n ? args.weight.value(c, args.in.outliers[o]) : 0.0f;
    }
    __syncthreads();
    const int some = count - first < kOutliers ? count - first : kOutliers;
    for (int o = 0; o < some; o++) {
      const float* x = outliers_x + o * Shape::rows + warp_row + g;
      const float* w = outliers_w + o * Shape::columns + warp_column + 2 * t;
#pragma unroll
      for (int i = 0; i < kRowTiles; i++)
#pragma unroll
        for (int j = 0; j < kColumnTiles; j++)
#pragma unroll
          for (int part = 0; part < 4; part++)
            values[i][j][part] = fmaf(x[i * 16 + part / 2 * 8], w[j * 8 + part % 2], values[i][j][part]);
    }
  }
  store_warp<Shape>(e, row + warp_row + g, column + warp_column + 2 * t, blockIdx.y, [&](int i, int j, int half) {
    return Pack<float, 2>{{values[i][j][2 * half], values[i][j][2 * half + 1]}};
  });
}

template <class Shape>
qt_status launch_mma(qt_stream* stream, Int8Args& args, const Result& y, int64_t m, int64_t n) {
  args.column_tiles = ceil_div<int64_t>(n, Shape::columns);
  const int64_t blocks = ceil_div<int64_t>(m, Shape::rows) * args.column_tiles, steps = args.steps > 0 ? args.steps : 1;
  args.steps_per_split = ceil_div(steps, choose_splits(stream, blocks, args.steps, 4));
  const int64_t splits = ceil_div(steps, args.steps_per_split);
  float* partial = nullptr;
  if (splits > 1 && !(partial = stream->scratch_of<float>(splits * m * n))) return stream->out_of_scratch();
  args.epilogue = Epilogue(y, m, n, partial);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  const size_t shared = shared_bytes<Int8Tiles<Shape>>();
  const qt_status status = launch(int8_mma_kernel<Shape>, grid, Shape::threads, shared, stream, args);
  return status || splits == 1 ? status : finish_splits(stream, args.epilogue, splits);
}

// ---- few rows ---------------------------------------------------------------------------------------------------------

constexpr int kFewThreads = 256, kFewRows = 4, kMostFew = 16;

// A warp an output. Its codes are read once for four rows, 16 bytes a lane: memory bounds it.
template <int rows>
__global__ void __launch_bounds__(kFewThreads) int8_few_kernel(const Int8Args args) {
  const Epilogue& e = args.epilogue;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * (kFewThreads / kWarp) + warp_index();
  if (output >= e.n) return;
  const int64_t row_bytes = args.weight.row_bytes;
  const uint32_t* weight = reinterpret_cast<const uint32_t*>(args.weight.codes + output * row_bytes);
  const int count = *args.in.count;
  for (int64_t first = 0; first < e.m; first += rows) {
    const uint32_t* x[rows];
    int32_t sums[rows] = {};
#pragma unroll
    for (int r = 0; r < rows; r++) {
      const int64_t row = first + r < e.m ? first + r : e.m - 1;
      x[r] = reinterpret_cast<const uint32_t*>(args.in.codes + row * row_bytes);
    }
    for (int64_t i = lane_index() * 4; i < row_bytes / 4; i += kWarp * 4) {
      const Pack<uint32_t, 4> w = load_pack<4>(weight + i);
#pragma unroll
      for (int r = 0; r < rows; r++) {
        const Pack<uint32_t, 4> v = load_pack<4>(x[r] + i);
#pragma unroll
        for (int j = 0; j < 4; j++) sums[r] = __dp4a(static_cast<int>(v[j]), static_cast<int>(w[j]), sums[r]);
      }
    }
    float outliers[rows] = {};
    for (int o = lane_index(); o < count; o += kWarp) {
      const int32_t column = args.in.outliers[o];
      const float w = args.weight.value(output, column);
#pragma unroll
      for (int r = 0; r < rows; r++)
        if (first + r < e.m) outliers[r] = fmaf(args.in.at(first + r, column), w, outliers[r]);
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
      const int32_t sum = warp_sum(sums[r]);
      const float outlier = warp_sum(outliers[r]);
      if (lane_index() > 0 || first + r >= e.m) continue;
      const float scale = args.in.absmax[first + r] * args.weight.absmax[output] * (1.0f / (127.0f * 127.0f));
      e.store(first + r, output, 0, static_cast<float>(sum) * scale + outlier);
    }
  }
}

constexpr int64_t kDequantizedBytes = 64 << 20;  // of a weight at a time

Factor part_of(const Factor& f, int64_t first) {
  Factor part = f;
  part.data = static_cast<const char*>(f.data) + first * f.outer_stride * (f.dtype == QT_FLOAT32 ? 4 : 2);
  return part;
}

// y [m, n] = x Wᵀ and its bias.
qt_status multiply(qt_stream* stream, const Linear& w, const Factor& x, int64_t m, const Result& y) {
  if (m <= 0 || w.n <= 0) return QT_OK;
  Int8Args args{};
  args.weight = Int8Weight(w.weight);
  if (qt_status status = int8_input(stream, x, m, w.weight, &args.in)) return status;
  if (m <= kMostFew) {
    args.epilogue = Epilogue(y, m, w.n, nullptr);
    const unsigned grid = static_cast<unsigned>(ceil_div<int64_t>(w.n, kFewThreads / kWarp));
    if (m == 1) return launch(int8_few_kernel<1>, grid, kFewThreads, 0, stream, args);
    return launch(int8_few_kernel<kFewRows>, grid, kFewThreads, 0, stream, args);
  }
  args.steps = ceil_div<int64_t>(args.weight.row_bytes, kStepBytes);
  const int64_t wide = ceil_div<int64_t>(m, Int8Wide::rows) * ceil_div<int64_t>(w.n, Int8Wide::columns);
  if (wide >= stream->multiprocessors) return launch_mma<Int8Wide>(stream, args, y, m, w.n);
  return launch_mma<Int8Flat>(stream, args, y, m, w.n);
}

}  // namespace

qt_status int8_forward(qt_stream* stream, const Linear& w, const Factor& x, const Factor& lora_x, int64_t m, const Result& y,
                       const Result* h) {
  if (qt_status status = multiply(stream, w, x, m, y)) return status;
  if (!w.lora_a) return QT_OK;
  Result own;
  if (!h) {
    void* data = stream->scratch(m * w.rank() * (x.dtype == QT_FLOAT32 ? 4 : 2));
    if (!data) return stream->out_of_scratch();
    own = result_of(data, x.dtype, w.rank(), false);
    h = &own;
  }
  const Product down = {lora_x, row_factor(w.lora_a), w.k, 1.0f};
  if (qt_status status = gemm(stream, m, w.rank(), &down, 1, *h)) return status;
  const Product up = {row_factor(h->data, h->dtype, w.rank()), row_factor(w.lora_b), w.rank(), w.lora_scale};
  Result sum = y;
  sum.accumulate = true;
  sum.bias = nullptr;
  return gemm(stream, m, w.n, &up, 1, sum);
}

qt_status int8_input_gradient(qt_stream* stream, const Linear& w, const Factor& dy, const Result* t, int64_t m,
                              const Result& dx) {
  if (t) {
    if (qt_status status = lora_up_gradient(stream, w, dy, m, *t)) return status;
  }
  if (m <= 0 || w.k <= 0) return QT_OK;
  const int32_t dtype = dy.dtype == QT_BFLOAT16 ? QT_BFLOAT16 : QT_FLOAT32;
  const int64_t size = dtype == QT_FLOAT32 ? 4 : 2, padded = round_up(w.k, 64);
  int64_t width = kDequantizedBytes / (size * (w.n + 1)) / 64 * 64;  // of the inputs
  width = width < 64 ? 64 : width > padded ? padded : width;
  void* dense = stream->scratch(w.n * width * size);
  if (!dense) return stream->out_of_scratch();
  for (int64_t first = 0; first < w.k; first += width) {
    const int64_t columns = w.k - first < width ? w.k - first : width, stride = round_up(columns, 64);
    if (qt_status status = int8_dequantize_inputs(stream, w.weight, first, stride, dense, dtype)) return status;
    Product products[2] = {{dy, column_factor(dense, dtype, stride), w.n, 1.0f}, {}};
    if (t)
      products[1] = {row_factor(t->data, t->dtype, w.rank()), part_of(column_factor(w.lora_a), first), w.rank(), w.lora_scale};
    Result part = dx;
    part.data = static_cast<char*>(dx.data) + first * dx.column_stride * (dx.dtype == QT_FLOAT32 ? 4 : 2);
    if (qt_status status = gemm(stream, m, columns, products, t ? 2 : 1, part)) return status;
  }
  return QT_OK;
}

}  // namespace quantune::cuda
