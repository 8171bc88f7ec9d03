// Products on the tensor cores of any sm_80 (mma.sync m16n8k16, bfloat16 operands, float32 sums). A block computes a tile of C;
// tiles of the factors, 64 deep in k, pass through a ring of shared memory filled by cp.async, and a 4-bit factor is
// dequantized on the way, once a block. A second product (an adapter's, with k = its rank) is more steps of the same loop.
//
// 2 m n k flops. A block of 256 x 128 reads 48 KB from the second-level cache for 4.2 MFLOP, 87 flops a byte, and its warps of
// 64 x 64 read 16 KB of shared memory a 16-deep step for 4096 tensor instructions' worth of work: the tensor cores bound it.
#pragma once
#include "device/launch.h"
#include "device/ready.h"
#include "device/shared.h"
#include "device/warp.h"
#include "four_bit_tiles.cuh"
#include "gemm_kernels.cuh"

namespace quantune::cuda {

template <int rows_, int columns_, int warp_rows_, int warp_columns_, int stages_>
struct MmaShape {
  static constexpr int rows = rows_, columns = columns_, warp_rows = warp_rows_, warp_columns = warp_columns_, stages = stages_;
  static constexpr int threads = rows / warp_rows * (columns / warp_columns) * kWarp;
};

// A product, or two into the same tiles of C, as tiles compute it.
struct MmaTask {
  DenseFactor a[2], b[2];  // b[0] is not read where the factor is 4-bit
  int64_t k[2];
  float scale;  // of the first product; the second's is in its factors
  int64_t row_tiles, column_tiles;
  int64_t first_steps, steps, steps_per_split;
  Epilogue epilogue;

  int64_t tiles() const { return row_tiles * column_tiles; }
};

// The second product's A, where it is A[0] D and computed by the same launch (below).
struct MmaInner {
  MmaTask task;
  bool copies;  // its epilogue's values go to `copy` too
  Epilogue copy;
  int32_t* ready;  // a counter for each of its row tiles, then the tickets; zero when the launch begins
};

struct MmaArgs : MmaTask {
  FourBitFactor four_bit;
  MmaInner inner;  // task.row_tiles is 0 without
};

template <class Shape, bool four_bit>
struct MmaTiles {
  static constexpr int kTilesOfB = four_bit ? 2 : Shape::stages;
  static constexpr int kElementsOfA = Shape::rows * kStepDepth, kElementsOfB = Shape::columns * kStepDepth;
  bf16 *a, *b;
  uint8_t* codes;
  float* nested_code;
  __host__ __device__ explicit MmaTiles(SharedCarver& carve) {
    a = carve.array<bf16>(Shape::stages * kElementsOfA, 128);
    b = carve.array<bf16>(kTilesOfB * kElementsOfB, 128);
    codes = nullptr;
    nested_code = nullptr;
    if (four_bit) {
      codes = carve.array<uint8_t>(4 * kElementsOfB / 2, 128);
      nested_code = carve.array<float>(256);
    }
  }
};

// Blocks that run at the same time share rows and columns: bands of eight tiles of rows, column by column.
struct TileIndex {
  static constexpr int64_t kBand = 8;
  int64_t row = 0, column = 0;
  TileIndex() = default;
  __device__ TileIndex(int64_t at, int64_t row_tiles, int64_t column_tiles) {
    const int64_t band = at / (kBand * column_tiles), first = band * kBand, within = at - first * column_tiles;
    const int64_t height = row_tiles - first < kBand ? row_tiles - first : kBand;
    row = first + within % height;
    column = within / height;
  }
};

// Two neighbouring sums of a row.
__device__ inline void store_pair(const Epilogue& e, int64_t row, int64_t column, int64_t split, float x, float y) {
  if (row >= e.m || column >= e.n) return;
  if (!e.partial && e.column_stride == 1 && column + 1 < e.n && e.row_stride % 2 == 0 && e.dtype != QT_FLOAT16) {
    const int64_t i = row * e.row_stride + column;
    if (e.bias) {
      x += load_float(e.bias, e.bias_dtype, column);
      y += load_float(e.bias, e.bias_dtype, column + 1);
    }
    if (e.dtype == QT_BFLOAT16) {
      uint32_t* to = reinterpret_cast<uint32_t*>(static_cast<bf16*>(e.c) + i);
      if (e.accumulate) {
        const float2 before = unpack_bf16(*to);
        x = before.x + x;
        y = before.y + y;
      }
      *to = pack_bf16(x, y);
    } else {
      float* to = static_cast<float*>(e.c) + i;
      if (e.accumulate) {
        const Pack<float, 2> before = load_pack<2>(to);
        x = before[0] + x;
        y = before[1] + y;
      }
      store_pack(to, Pack<float, 2>{{x, y}});
    }
    return;
  }
  e.store(row, column, split, x);
  if (column + 1 < e.n) e.store(row, column + 1, split, y);
}

// A thread's sums of a tile: pairs at the rows `row` + kRowStep i + 8 half and the columns `column` + 8 j, given by sum(i, j,
// half). What a pair needs is asked once: asked of each of 64 pairs in unrolled code it was nine tenths of a kernel's
// instructions, far more than a multiprocessor's cache of them holds.
template <int kRows, int kRowStep, int kColumns, class Sum>
__device__ __forceinline__ void store_sums(const Epilogue& e, int64_t row, int64_t column, int64_t split, const Sum& sum) {
  using Pair = Pack<float, 2>;
  constexpr int kPairs = kRows * 2 * kColumns;
  auto each = [&](auto* first, int64_t stride, const auto& store) {  // stride: from row to row, in pairs
#pragma unroll
    for (int r = 0; r < kRows * 2; r++) {
      auto* to = first + (r / 2 * kRowStep + r % 2 * 8) * stride;
#pragma unroll
      for (int j = 0; j < kColumns; j++) store(to + 4 * j, sum(r / 2, j, r % 2));
    }
  };
  const bool inside = row + (kRows - 1) * kRowStep + 8 < e.m && column + (kColumns - 1) * 8 + 1 < e.n;
  const int64_t row_stride = e.partial ? e.n : e.row_stride, at = row * row_stride + column;
  const bool pairs = inside && row_stride % 2 == 0 && (e.partial || (!e.bias && e.column_stride == 1));
  if (pairs && !e.partial && e.dtype == QT_BFLOAT16) {
    auto* first = reinterpret_cast<uint32_t*>(static_cast<bf16*>(e.c) + at);
    if (e.accumulate) {
      each(first, row_stride / 2, [](uint32_t* to, const Pair& s) {
        const float2 before = unpack_bf16(*to);
        *to = pack_bf16(before.x + s[0], before.y + s[1]);
      });
    } else {
      each(first, row_stride / 2, [](uint32_t* to, const Pair& s) { *to = pack_bf16(s[0], s[1]); });
    }
  } else if (pairs && (e.partial || (e.dtype == QT_FLOAT32 && !e.accumulate))) {
    float* to = e.partial ? e.partial + split * e.m * e.n : static_cast<float*>(e.c);
    each(reinterpret_cast<Pair*>(to + at), row_stride / 2, [](Pair* to, const Pair& s) { *to = s; });
  } else {
    // The edges of C, and what is seldom: one loop, whose sums lie in local memory.
    Pair kept[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; i++) kept[i] = sum(i / kColumns / 2, i % kColumns, i / kColumns % 2);
#pragma unroll 1
    for (int i = 0; i < kPairs; i++) {
      const int r = i / kColumns;
      store_pair(e, row + r / 2 * kRowStep + r % 2 * 8, column + i % kColumns * 8, split, kept[i][0], kept[i][1]);
    }
  }
}

// One tile of C, by a whole block: part `split` of k, and store(row, column, sum) for what each warp's threads have, as
// store_sums takes it. Calls before_second() ahead of the barrier after which the second product's A is copied.
template <class Shape, bool a_across, bool b_across, bool four_bit, class BeforeSecond, class Store>
__device__ __forceinline__ void mma_tile(const MmaTask& args, const FourBitFactor* codes, const TileIndex& tile, int64_t split,
                                         const BeforeSecond& before_second, const Store& store) {
  constexpr int kThreads = Shape::threads, kStages = Shape::stages;
  using Tiles = MmaTiles<Shape, four_bit>;
  // Where B is dense it is not used.
  using Run = FourBitRun<TileShape<four_bit ? Shape::columns : 128, b_across>, b_across, four_bit ? kThreads : 256>;
  SharedCarver carve = dynamic_shared();
  const Tiles tiles(carve);
  const Epilogue& e = args.epilogue;
  const int64_t row = tile.row * Shape::rows, column = tile.column * Shape::columns;
  const int64_t begin = split * args.steps_per_split;
  int64_t end = begin + args.steps_per_split;
  if (end > args.steps) end = args.steps;

  auto load_tile_a = [&](int64_t step, int slot) {
    const int p = step >= args.first_steps;
    const int64_t k = (p ? step - args.first_steps : step) * kStepDepth;
    copy_tile<Shape::rows, a_across, kThreads>(tiles.a + slot * Tiles::kElementsOfA, args.a[p], row, e.m, k, args.k[p]);
  };
  auto load_tile_b = [&](int64_t step, int slot) {
    const int p = step >= args.first_steps;
    const int64_t k = (p ? step - args.first_steps : step) * kStepDepth;
    copy_tile<Shape::columns, b_across, kThreads>(tiles.b + slot * Tiles::kElementsOfB, args.b[p], column, e.n, k, args.k[p]);
  };
  Run run;
  auto copy_codes = [&](int64_t step) {
    if (step < end && step < args.first_steps)
      run.copy(*codes, static_cast<int>(step - begin) % Run::kSlots, run.position(*codes, step));
  };
  if constexpr (four_bit) {
    if (codes->weight.nested_absmax)
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) tiles.nested_code[i] = codes->weight.nested_code[i];
    run.start(tiles.codes, tiles.nested_code, *codes, column, e.n, args.k[0]);
    if (begin < end) run.load_scale(*codes, run.position(*codes, begin));
    copy_codes(begin);
  }
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (begin + s < end) {
      load_tile_a(begin + s, s);
      if constexpr (!four_bit) load_tile_b(begin + s, s);
    }
    if constexpr (four_bit) copy_codes(begin + s + 1);
    async_commit();
  }
  const int warp = warp_index(), warp_row = warp % (Shape::rows / Shape::warp_rows) * Shape::warp_rows,
            warp_column = warp / (Shape::rows / Shape::warp_rows) * Shape::warp_columns;
  WarpProduct<Shape::warp_rows, Shape::warp_columns> product;
  product.clear();

  // The tile of B of a step of an adapter, where the other steps' are dequantized.
  auto fetch_tile_b = [&](int64_t step) {
    load_tile_b(step, static_cast<int>(step - begin) % 2);
    async_commit();
    async_wait<0>();
  };
  if constexpr (four_bit) {
    async_wait<kStages - 2>();
    __syncthreads();  // nested_code
    if (begin < end) {
      if (begin < args.first_steps) {
        run.prepare(*codes, run.position(*codes, begin) >= 0);
#pragma unroll
        for (int part = 0; part < 4; part++) run.decode(tiles.b, 0, part);
      } else {
        fetch_tile_b(begin);
      }
      run.load_scale(*codes, run.position(*codes, begin + 1));
    }
  }
  for (int64_t step = begin; step < end; step++) {
    const int at = static_cast<int>(step - begin);
    const int64_t ahead = step + kStages - 1;
    if (ahead == args.first_steps) before_second();
    async_wait<kStages - 2>();
    __syncthreads();
    if (ahead < end) {
      load_tile_a(ahead, (at + kStages - 1) % kStages);
      if constexpr (!four_bit) load_tile_b(ahead, (at + kStages - 1) % kStages);
    }
    if constexpr (four_bit) copy_codes(ahead + 1);
    async_commit();
    const bf16* tile_a = tiles.a + at % kStages * Tiles::kElementsOfA;
    const bf16* tile_b = tiles.b + at % Tiles::kTilesOfB * Tiles::kElementsOfB;
    bf16* next_b = tiles.b + (at + 1) % Tiles::kTilesOfB * Tiles::kElementsOfB;
    bool decode = false;
    if constexpr (four_bit) {
      if (step + 1 < end && step + 1 < args.first_steps) {
        decode = true;
        run.prepare(*codes, run.position(*codes, step + 1) >= 0);
        run.load_scale(*codes, run.position(*codes, step + 2));
      } else if (step + 1 < end) {
        fetch_tile_b(step + 1);
      }
    }
    product.template load<Shape::rows, a_across, Shape::columns, b_across>(0, tile_a, tile_b, warp_row, warp_column, 0);
#pragma unroll
    for (int i = 0; i < kStepDepth / 16; i++) {
      if (i + 1 < kStepDepth / 16)
        product.template load<Shape::rows, a_across, Shape::columns, b_across>((i + 1) & 1, tile_a, tile_b, warp_row,
                                                                               warp_column, (i + 1) * 16);
      if constexpr (four_bit) {
        if (decode) run.decode(next_b, (at + 1) % Run::kSlots, i);
      }
      product.multiply(i & 1);
    }
  }
  async_wait<0>();
  const int g = lane_index() / 4, t = lane_index() % 4;
  store(row + warp_row + g, column + warp_column + 2 * t, [&](int i, int j, int half) {
    const float(&sums)[4] = product.sums[i][j];
    return Pack<float, 2>{{sums[2 * half] * args.scale, sums[2 * half + 1] * args.scale}};
  });
}

// store_sums of a warp of that shape.
template <class Shape, class Sum>
__device__ __forceinline__ void store_warp(const Epilogue& e, int64_t row, int64_t column, int64_t split, const Sum& sum) {
  store_sums<Shape::warp_rows / 16, 16, Shape::warp_columns / 8>(e, row, column, split, sum);
}

using MmaLarge = MmaShape<256, 128, 64, 64, 3>;
using MmaMedium = MmaShape<128, 128, 64, 32, 3>;
using MmaFlat = MmaShape<64, 128, 32, 32, 4>;    // few rows
using MmaNarrow = MmaShape<128, 32, 16, 32, 4>;  // few columns: an adapter's rank

// ---- the inner product of an adapter
// -----------------------------------------------------------------------------------------
//
// y = x Wᵀ + s (x Aᵀ) Bᵀ with r = rank. Of h = x Aᵀ a block of C could compute the rows it needs by itself: r / 128 more work
// of the tensor cores in every block, 12.5 % at r = 16. A launch of its own before reads x once more: 64 MB for 8192 x 4096, at
// 3.35 TB/s 19 µs beside the 350 to 600 µs of n = 4096, and 20 % of the time where n = 1024; and it fills few multiprocessors
// when rows are few. So blocks of the same launch compute h, tiles of 128 x 32 that are as many as r / 32 (rounded up) more
// columns of tiles, a quarter as wide as the others: 0.8 % more work at n = 4096, none of it waiting for memory that C does not
// want too. Those of a band of tiles go first, so their rows of x are on the way through the second-level cache when the band's
// tiles of C ask for them. A block of C needs h after the last step of its first product; by then the tiles of h, which began
// before it and have a quarter of its arithmetic, are there. (On Hopper tiles of h are as wide as the others, 3 % at n = 4096:
// narrower ones would want their 32 KB of x a step faster than the second-level cache gives them, 64 bytes a clock.) Where it
// must wait nothing hangs: a block takes its tile from a counter when it starts, so a tile that it waits for belongs to a block
// that is running already, in whatever order a GPU starts blocks.
constexpr int kInnerRows = MmaNarrow::rows;

template <class Shape>
constexpr bool has_inner(bool a_across) {
  return !a_across && Shape::columns > MmaNarrow::columns;
}

// What a ticket stands for: a tile of the inner product (then true) or of C. A band has `band_rows` rows of inner tiles.
__device__ inline bool find_tile(int64_t ticket, int64_t band_rows, const MmaTask& inner, int64_t row_tiles,
                                 int64_t column_tiles, TileIndex* tile) {
  const int64_t per_band = band_rows * inner.column_tiles + TileIndex::kBand * column_tiles;
  const int64_t band = ticket / per_band, within = ticket - band * per_band, first = band * band_rows;
  const int64_t height = inner.row_tiles - first < band_rows ? inner.row_tiles - first : band_rows;
  const bool is_inner = within < height * inner.column_tiles;
  if (is_inner) {
    tile->row = first + within / inner.column_tiles;
    tile->column = within % inner.column_tiles;
  } else {
    *tile = TileIndex(band * TileIndex::kBand * column_tiles + within - height * inner.column_tiles, row_tiles, column_tiles);
  }
  return is_inner;
}

// Calls store(epilogue) for each place where the sums of an inner tile go.
template <class Store>
__device__ __forceinline__ void store_inner(const MmaInner& inner, const Store& store) {
#pragma unroll 1
  for (int i = 0; i < (inner.copies ? 2 : 1); i++) store(i ? inner.copy : inner.task.epilogue);
}

// Takes the block's tile. Computes it where it is one of the inner product, else says in *tile which one of C it is.
template <class Shape, bool b_across>
__device__ inline bool takes_inner_tile(const MmaArgs& args, TileIndex* tile) {
  const MmaInner& inner = args.inner;
  const MmaTask& task = inner.task;
  QT_SHARED(int32_t, ticket, 1);
  if (threadIdx.x == 0) ticket[0] = atomicAdd(inner.ready + task.row_tiles, 1);
  __syncthreads();
  if (!find_tile(ticket[0], TileIndex::kBand * Shape::rows / kInnerRows, task, args.row_tiles, args.column_tiles, tile))
    return false;
  mma_tile<MmaNarrow, false, b_across, false>(
      task, nullptr, *tile, 0, [] {},
      [&](int64_t row, int64_t column, const auto& sum) {
        store_inner(inner, [&](const Epilogue& e) { store_warp<MmaNarrow>(e, row, column, 0, sum); });
      });
  __syncthreads();
  if (threadIdx.x == 0) signal_ready(inner.ready + tile->row);
  return true;
}

template <class Shape>
__device__ inline void wait_for_inner(const MmaArgs& args, const TileIndex& tile) {
  const MmaTask& task = args.inner.task;
  if (threadIdx.x > 0 || task.row_tiles == 0) return;
  const int64_t begin = tile.row * Shape::rows / kInnerRows, end = ((tile.row + 1) * Shape::rows - 1) / kInnerRows + 1;
  for (int64_t i = begin; i < end && i < task.row_tiles; i++)
    wait_ready(args.inner.ready + i, static_cast<int32_t>(task.column_tiles));
}

template <class Shape, bool a_across, bool b_across, bool four_bit>
__global__ void __launch_bounds__(Shape::threads) mma_kernel(const __grid_constant__ MmaArgs args) {
  TileIndex tile;
  if constexpr (has_inner<Shape>(a_across)) {
    if (args.inner.task.row_tiles > 0 && takes_inner_tile<Shape, b_across>(args, &tile)) return;
  }
  if (!has_inner<Shape>(a_across) || args.inner.task.row_tiles == 0)
    tile = TileIndex(blockIdx.x, args.row_tiles, args.column_tiles);
  mma_tile<Shape, a_across, b_across, four_bit>(
      args, &args.four_bit, tile, blockIdx.y, [&] { wait_for_inner<Shape>(args, tile); },
      [&](int64_t row, int64_t column, const auto& sum) { store_warp<Shape>(args.epilogue, row, column, blockIdx.y, sum); });
}

// Launch over the tiles and splits that `args` says.
template <class Shape, bool a_across, bool b_across, bool four_bit>
qt_status launch_mma(qt_stream* stream, const MmaArgs& args, int64_t splits) {
  const dim3 grid(static_cast<unsigned>(args.tiles() + args.inner.task.tiles()), static_cast<unsigned>(splits));
  const size_t bytes = shared_bytes<MmaTiles<Shape, four_bit>>(), least = shared_bytes<MmaTiles<MmaNarrow, false>>();
  return launch(mma_kernel<Shape, a_across, b_across, four_bit>, grid, Shape::threads,
                args.inner.task.row_tiles > 0 && bytes < least ? least : bytes, stream, args);
}

enum class MmaTile { kLarge, kMedium, kFlat, kNarrow };
qt_status launch_mma_dense(qt_stream* stream, const MmaArgs& args, int64_t splits, MmaTile tile, bool a_across, bool b_across);
qt_status launch_mma_four_bit(qt_stream* stream, const MmaArgs& args, int64_t splits, MmaTile tile, bool b_across);

// The same with the instructions of sm_90a, and whether they are there and C has tiles enough for them.
bool hopper_takes(const qt_stream* stream, int64_t m, int64_t n);
qt_status gemm_hopper(qt_stream* stream, const MmaArgs& product, bool four_bit, bool a_across, bool b_across);

}  // namespace quantune::cuda
