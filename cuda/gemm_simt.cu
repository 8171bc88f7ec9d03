// Products in float32 arithmetic: tiles of C, 64 x 64 or 128 x 128 a block, float32 fused multiply-adds over tiles of 16 in k
// that pass through registers into shared memory while the tile before is multiplied. Factors of any type are widened on the
// way.
//
// 2 m n k flops on the float32 units (67 TFLOP/s on an H100), (BM + BN) / (BM BN) of a factor's element a multiply-add: at
// 128 x 128 that is 8 flops a byte of shared memory, so the units bound it. For few rows and columns k is split over blocks.
#include "device/launch.h"
#include "device/shared.h"
#include "gemm_kernels.cuh"

namespace quantune::cuda {

namespace {

constexpr int kThreads = 256, kDepth = 16;

struct SimtProduct {
  Source a, b;
  int64_t k;
  float scale;
  bool vector_a, vector_b;  // four neighbours of float32 or 16 bits may be loaded as one
};

struct SimtArgs {
  SimtProduct products[2];
  int32_t count;
  int64_t column_tiles, steps, steps_per_split;
  Epilogue epilogue;
};

// One thread's part of a tile [kDepth, width] of a factor, from global memory to registers to shared memory.
template <int width>
struct TileLoad {
  static constexpr int kParts = width * kDepth / 4 / kThreads, kStride = width + 4;
  float values[kParts][4];

  __device__ static int clamp_four(int64_t left) { return left < 0 ? 0 : left < 4 ? static_cast<int>(left) : 4; }

  __device__ void load(const Source& s, bool vector, int64_t outer, int64_t outers, int64_t k, int64_t ks) {
#pragma unroll
    for (int p = 0; p < kParts; p++) {
      const int at = static_cast<int>(threadIdx.x) + p * kThreads;
      if (s.k_stride == 1) {
        const int64_t o = outer + at / (kDepth / 4), i = k + at % (kDepth / 4) * 4;
        load_four(s, vector, o * s.outer_stride + i, o < outers ? clamp_four(ks - i) : 0, values[p]);
      } else {
        const int64_t o = outer + at % (width / 4) * 4, i = k + at / (width / 4);
        load_four(s, vector, o + i * s.k_stride, i < ks ? clamp_four(outers - o) : 0, values[p]);
      }
    }
  }
  __device__ void store(float* tile, bool along_k, float scale) const {
#pragma unroll
    for (int p = 0; p < kParts; p++) {
      const int at = static_cast<int>(threadIdx.x) + p * kThreads;
      if (along_k) {
#pragma unroll
        for (int j = 0; j < 4; j++) tile[(at % (kDepth / 4) * 4 + j) * kStride + at / (kDepth / 4)] = values[p][j] * scale;
      } else {
        Pack<float, 4> four;
#pragma unroll
        for (int j = 0; j < 4; j++) four[j] = values[p][j] * scale;
        store_pack(tile + at / (width / 4) * kStride + at % (width / 4) * 4, four);
      }
    }
  }
};

template <int width>
struct SimtTiles {
  float *a, *b;
  __host__ __device__ explicit SimtTiles(SharedCarver& carve) {
    a = carve.array<float>(2 * kDepth * TileLoad<width>::kStride);
    b = carve.array<float>(2 * kDepth * TileLoad<width>::kStride);
  }
};

// Which product, and where in its k, a step of the whole sum is.
struct Position {
  int product;
  int64_t k;
  __device__ Position(const SimtArgs& args, int64_t step) : product(0), k(step * kDepth) {
    const int64_t first = (args.products[0].k + kDepth - 1) / kDepth;
    if (args.count > 1 && step >= first) {
      product = 1;
      k = (step - first) * kDepth;
    }
  }
};

template <int width>
__global__ void __launch_bounds__(kThreads) simt_kernel(const SimtArgs args) {
  constexpr int kPer = width / 16, kQuads = kPer / 4, kStride = TileLoad<width>::kStride;
  SharedCarver carve = dynamic_shared();
  SimtTiles<width> tiles(carve);
  const Epilogue& e = args.epilogue;
  const int64_t row = blockIdx.x / args.column_tiles * width, column = blockIdx.x % args.column_tiles * width;
  const int64_t begin = blockIdx.y * args.steps_per_split;
  int64_t end = begin + args.steps_per_split;
  if (end > args.steps) end = args.steps;
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;

  float sums[kPer][kPer] = {};
  TileLoad<width> a, b;
  bool a_along_k = false, b_along_k = false;
  float scale = 1.0f;
  auto load = [&](int64_t step) {
    const Position at(args, step);
    const SimtProduct& p = args.products[at.product];
    a.load(p.a, p.vector_a, row, e.m, at.k, p.k);
    b.load(p.b, p.vector_b, column, e.n, at.k, p.k);
    a_along_k = p.a.k_stride == 1;
    b_along_k = p.b.k_stride == 1;
    scale = p.scale;
  };
  auto store = [&](int buffer) {
    a.store(tiles.a + buffer * kDepth * kStride, a_along_k, scale);
    b.store(tiles.b + buffer * kDepth * kStride, b_along_k, 1.0f);
  };
  if (begin < end) {
    load(begin);
    store(0);
  }
  __syncthreads();
  for (int64_t step = begin; step < end; step++) {
    const int buffer = static_cast<int>(step - begin) & 1;
    const bool more = step + 1 < end;
    if (more) load(step + 1);
    const float *from_a = tiles.a + buffer * kDepth * kStride, *from_b = tiles.b + buffer * kDepth * kStride;
#pragma unroll
    for (int i = 0; i < kDepth; i++) {
      float left[kPer], right[kPer];
#pragma unroll
      for (int q = 0; q < kQuads; q++) {
        const Pack<float, 4> l = load_pack<4>(from_a + i * kStride + q * 64 + ty * 4),
                             r = load_pack<4>(from_b + i * kStride + q * 64 + tx * 4);
#pragma unroll
        for (int j = 0; j < 4; j++) left[q * 4 + j] = l[j], right[q * 4 + j] = r[j];
      }
#pragma unroll
      for (int y = 0; y < kPer; y++)
#pragma unroll
        for (int x = 0; x < kPer; x++) sums[y][x] = fmaf(left[y], right[x], sums[y][x]);
    }
    if (more) store(buffer ^ 1);
    __syncthreads();
  }
#pragma unroll
  for (int y = 0; y < kPer; y++) {
    const int64_t i = row + y / 4 * 64 + ty * 4 + y % 4;
    if (i >= e.m) continue;
#pragma unroll
    for (int x = 0; x < kPer; x++) {
      const int64_t j = column + x / 4 * 64 + tx * 4 + x % 4;
      if (j < e.n) e.store(i, j, blockIdx.y, sums[y][x]);
    }
  }
}

// splits x 4 bytes read, an element written: bound by memory.
__global__ void __launch_bounds__(256) finish_kernel(const Epilogue e, int64_t splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, size = e.m * e.n;
  if (i >= size) return;
  float sum = 0.0f;
  for (int64_t s = 0; s < splits; s++) sum += e.partial[s * size + i];
  const int64_t row = i / e.n, column = i % e.n, at = row * e.row_stride + column * e.column_stride;
  store_float(e.c, e.dtype, at, e.finished(at, column, sum));
}

}  // namespace

qt_status finish_splits(qt_stream* stream, const Epilogue& epilogue, int64_t splits) {
  return launch(finish_kernel, static_cast<unsigned>(ceil_div<int64_t>(epilogue.m * epilogue.n, 256)), 256, 0, stream, epilogue,
                splits);
}

qt_status gemm_float32(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c) {
  SimtArgs args{};
  args.count = count;
  for (int i = 0; i < count; i++) {
    const Product& p = products[i];
    args.products[i] = {Source(p.a), Source(p.b), p.k, p.scale, may_load_four(p.a), may_load_four(p.b)};
    args.steps += ceil_div<int64_t>(p.k, kDepth);
  }
  // Wide tiles where they fill the device.
  const bool wide = ceil_div<int64_t>(m, 128) * ceil_div<int64_t>(n, 128) >= stream->multiprocessors;
  const int64_t width = wide ? 128 : 64;
  args.column_tiles = ceil_div(n, width);
  const int64_t blocks = ceil_div(m, width) * args.column_tiles;
  int64_t splits = choose_splits(stream, blocks, args.steps, 16);
  args.steps_per_split = ceil_div(args.steps > 0 ? args.steps : 1, splits);
  splits = ceil_div(args.steps > 0 ? args.steps : 1, args.steps_per_split);
  float* partial = nullptr;
  if (splits > 1 && !(partial = stream->scratch_of<float>(splits * m * n))) return stream->out_of_scratch();
  args.epilogue = Epilogue(c, m, n, partial);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  const qt_status status = wide ? launch(simt_kernel<128>, grid, kThreads, shared_bytes<SimtTiles<128>>(), stream, args)
                                : launch(simt_kernel<64>, grid, kThreads, shared_bytes<SimtTiles<64>>(), stream, args);
  if (status || splits == 1) return status;
  return finish_splits(stream, args.epilogue, splits);
}

}  // namespace quantune::cuda
