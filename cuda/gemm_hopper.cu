// Products on Hopper (sm_90a): tensor copies into a ring of tiles by one thread, wgmma by two warpgroups that each own 128 rows
// of a tile of C [256, 128], blocks that stay and take tile after tile so that the ring is full when a tile begins. A 4-bit
// factor is dequantized into its tiles by eight more warps while the tensor cores work; an adapter is more steps of the same
// loop.
//
// 2 m n k flops: a step of 64 in k is 1024 clocks of the tensor cores (2048 multiply-adds a clock), for 48 KB copied (47 bytes
// a clock and multiprocessor from the second-level cache). Dequantizing 128 x 64 codes is about 2200 warp instructions a step,
// what feeds the tensor cores 1100, of 4096 that can be issued.
#include "device/hopper.h"
#include "device/launch.h"
#include "device/ready.h"
#include "device/shared.h"
#include "device/warp.h"
#include "four_bit_tiles.cuh"
#include "gemm_mma.cuh"

namespace quantune::cuda {

namespace {

constexpr int kRows = 256, kColumns = 128, kStages = 4, kGroupThreads = 128, kConsumers = 2;
constexpr int kElementsOfA = kRows * kStepDepth, kElementsOfB = kColumns * kStepDepth;
constexpr int kBoxBytes = 64 * kStepDepth * 2;

template <bool four_bit>
struct Roles {
  static constexpr int producers = four_bit ? 2 : 1;  // warpgroups
  static constexpr int threads = (producers + kConsumers) * kGroupThreads;
  // What each thread may have: together no more than the 65536 of a multiprocessor.
  static constexpr int producer_registers = four_bit ? 88 : 40, consumer_registers = four_bit ? 168 : 232;
};

constexpr int kConsumerWarps = kConsumers * kGroupThreads / kWarp;

struct HopperArgs {
  TensorMap a[2], b[2], inner_b;
  int64_t k[2];
  FourBitFactor four_bit;
  float scale;
  int64_t row_tiles, column_tiles, first_steps, steps;
  int64_t tiles;  // of the inner product too
  Epilogue epilogue;
  MmaInner inner;  // tiles of the same size; task.row_tiles is 0 without
};

// The tile of an across factor lies as boxes of 64 outer indices, [outer / 64][k][64], one after the other.
template <bool across>
struct HopperTile {
  static constexpr int kChunks = (across ? kColumns : kStepDepth) / 8;
  static constexpr int kElements = kElementsOfB;
  __device__ static int chunk_at(int row, int chunk) {
    return chunk / 8 * kStepDepth * 8 + row * 8 + ((chunk & 7) ^ (row & 7));
  }
};

template <bool four_bit>
struct HopperShared {
  bf16 *a, *b;
  uint8_t* codes;
  float* nested_code;
  uint64_t *full, *empty;
  int32_t* tickets;
  uint64_t *ticket_full, *ticket_empty;
  __host__ __device__ explicit HopperShared(SharedCarver& carve) {
    a = carve.array<bf16>(kStages * kElementsOfA, 1024);
    b = carve.array<bf16>(kStages * kElementsOfB, 1024);
    codes = four_bit ? carve.array<uint8_t>(4 * kElementsOfB / 2, 128) : nullptr;
    nested_code = four_bit ? carve.array<float>(256) : nullptr;
    full = carve.array<uint64_t>(kStages);
    empty = carve.array<uint64_t>(kStages);
    tickets = carve.array<int32_t>(2);
    ticket_full = carve.array<uint64_t>(2);
    ticket_empty = carve.array<uint64_t>(2);
  }
};

#if defined(QT_HOPPER)

// Which stage of the ring, and the parity of its phase.
struct RingPosition {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// The tiles of a block: each gridDim.x-th, or, where tiles wait for those of an inner product, the next ticket, which thread 0
// draws and all others read in shared memory.
template <bool four_bit>
struct TileQueue {
  int taken = 0;

  __device__ int64_t next(const HopperArgs& args, const HopperShared<four_bit>& shared) {
    const int turn = taken++, slot = turn % 2;
    if (args.inner.task.row_tiles == 0) return blockIdx.x + static_cast<int64_t>(turn) * gridDim.x;
    const uint32_t phase = static_cast<uint32_t>(turn / 2) & 1;
    if (threadIdx.x == 0) {
      barrier_wait(shared.ticket_empty + slot, phase ^ 1);
      const int32_t drawn = atomicAdd(args.inner.ready + args.inner.task.row_tiles, 1);
      shared.tickets[slot] = drawn;
      barrier_arrive(shared.ticket_full + slot);
      if (!four_bit) return drawn;  // alone in its warp
    }
    barrier_wait(shared.ticket_full + slot, phase);
    const int64_t ticket = shared.tickets[slot];
    __syncwarp();
    if (lane_index() == 0) barrier_arrive(shared.ticket_empty + slot);
    return ticket;
  }
};

// What a place in the queue stands for; true: a tile of the inner product.
__device__ inline bool find_tile(const HopperArgs& args, int64_t at, TileIndex* tile) {
  if (args.inner.task.row_tiles > 0)
    return find_tile(at, TileIndex::kBand, args.inner.task, args.row_tiles, args.column_tiles, tile);
  *tile = TileIndex(at, args.row_tiles, args.column_tiles);
  return false;
}

template <int outers, bool across>
__device__ inline void copy_boxes(bf16* tile, const TensorMap* map, uint64_t* barrier, int64_t outer, int64_t k) {
  if constexpr (across) {
#pragma unroll
    for (int i = 0; i < outers / 64; i++)
      copy_box(tile + i * 64 * kStepDepth, map, barrier, static_cast<int>(outer) + i * 64, static_cast<int>(k));
  } else {
    copy_box(tile, map, barrier, static_cast<int>(k), static_cast<int>(outer));
  }
}

template <bool a_across, bool b_across, bool four_bit>
__device__ inline void produce(const HopperArgs& args, const HopperShared<four_bit>& shared) {
  using Run = FourBitRun<HopperTile<b_across>, b_across, 2 * kGroupThreads>;
  RingPosition at;
  TileQueue<four_bit> queue;
  for (int64_t t = queue.next(args, shared); t < args.tiles; t = queue.next(args, shared)) {
    TileIndex tile;
    const bool inner = find_tile(args, t, &tile);
    const int64_t steps = inner ? args.first_steps : args.steps;
    const int64_t row = tile.row * kRows, column = tile.column * kColumns;
    Run run{};  // of an inner tile, which has no codes, nothing is used
    auto copy_codes = [&](int64_t step) {
      if (step < args.first_steps && !inner)
        run.copy(args.four_bit, static_cast<int>(step % Run::kSlots), run.position(args.four_bit, step));
      async_commit();
    };
    if (four_bit && !inner) {
      run.start(shared.codes, shared.nested_code, args.four_bit, column, args.epilogue.n, args.k[0]);
      run.load_scale(args.four_bit, run.position(args.four_bit, 0));
      for (int s = 0; s < Run::kSlots - 1; s++) copy_codes(s);
    }
    for (int64_t step = 0; step < steps; step++, at.advance()) {
      const bool second = step >= args.first_steps;
      const int64_t k = (second ? step - args.first_steps : step) * kStepDepth;
      bf16 *tile_a = shared.a + at.stage * kElementsOfA, *tile_b = shared.b + at.stage * kElementsOfB;
      uint64_t* full = shared.full + at.stage;
      barrier_wait(shared.empty + at.stage, at.phase ^ 1);
      if (threadIdx.x == 0) {
        const bool copy_b = !four_bit || second || inner;
        if (second && step == args.first_steps && args.inner.task.row_tiles > 0) {
          wait_ready(args.inner.ready + tile.row, kConsumerWarps);
          global_proxy_fence();
        }
        barrier_expect(full, (kElementsOfA + (copy_b ? kElementsOfB : 0)) * 2);
        copy_boxes<kRows, a_across>(tile_a, &args.a[second], full, row, k);
        if (copy_b) copy_boxes<kColumns, b_across>(tile_b, inner ? &args.inner_b : &args.b[second], full, column, k);
      }
      if constexpr (four_bit) {
        copy_codes(step + Run::kSlots - 1);
        if (!second && !inner) {
          async_wait<Run::kSlots - 1>();
          run.prepare(args.four_bit, run.position(args.four_bit, step) >= 0);
          run.load_scale(args.four_bit, run.position(args.four_bit, step + 1));
#pragma unroll
          for (int part = 0; part < 4; part++) run.decode(tile_b, static_cast<int>(step % Run::kSlots), part);
          async_proxy_fence();
        }
        __syncwarp();
        if (lane_index() == 0) barrier_arrive(full);
      }
    }
    if constexpr (four_bit) async_wait<0>();
  }
}

template <bool a_across, bool b_across, bool four_bit>
__device__ inline void consume(const HopperArgs& args, const HopperShared<four_bit>& shared, int group) {
  const int warp = warp_index() % 4, g = lane_index() / 4, t = lane_index() % 4;
  RingPosition at;
  TileQueue<four_bit> queue;
  for (int64_t i = queue.next(args, shared); i < args.tiles; i = queue.next(args, shared)) {
    TileIndex tile;
    const bool inner = find_tile(args, i, &tile);
    const int64_t steps = inner ? args.first_steps : args.steps;
    float low[64], high[64];  // rows 0 to 63 and 64 to 127 of this warpgroup's
#pragma unroll
    for (int j = 0; j < 64; j++) low[j] = high[j] = 0.0f;
    for (int64_t step = 0; step < steps; step++) {
      barrier_wait(shared.full + at.stage, at.phase);
      const bf16 *tile_a = shared.a + at.stage * kElementsOfA + group * 128 * kStepDepth,
                 *tile_b = shared.b + at.stage * kElementsOfB;
      wgmma_fence();
#pragma unroll
      for (int part = 0; part < kStepDepth / 16; part++) {
        // 16 further in k: within a row of 128 bytes, or 16 rows further.
        const int of_a = part * (a_across ? 16 * 64 : 16), of_b = part * (b_across ? 16 * 64 : 16);
        const uint64_t b = tile_descriptor(tile_b + of_b, b_across ? kBoxBytes : 16);
        wgmma_64x128<a_across, b_across>(low, tile_descriptor(tile_a + of_a, a_across ? kBoxBytes : 16), b);
        wgmma_64x128<a_across, b_across>(high, tile_descriptor(tile_a + 64 * kStepDepth + of_a, a_across ? kBoxBytes : 16), b);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the products of the step before: its tiles may be overwritten
      if (step > 0 && lane_index() == 0) barrier_arrive(shared.empty + (at.stage + kStages - 1) % kStages);
      at.advance();
    }
    wgmma_wait<0>();
    wgmma_finished(low);
    wgmma_finished(high);
    if (lane_index() == 0) barrier_arrive(shared.empty + (at.stage + kStages - 1) % kStages);
    const int64_t row = tile.row * kRows + group * 128 + warp * 16 + g, column = tile.column * kColumns + 2 * t;
    auto store = [&](const Epilogue& to) {
      store_sums<2, 64, 16>(to, row, column, 0, [&](int i, int j, int half) {
        const float(&sums)[64] = i ? high : low;
        return Pack<float, 2>{{sums[4 * j + 2 * half] * args.scale, sums[4 * j + 2 * half + 1] * args.scale}};
      });
    };
    // One copy of the code for all: a loop whose body is too large to be there twice.
    const int places = inner && args.inner.copies ? 2 : 1;
#pragma unroll 1
    for (int i = 0; i < places; i++) store(!inner ? args.epilogue : i ? args.inner.copy : args.inner.task.epilogue);
    if (!inner) continue;
    global_proxy_fence();
    __syncwarp();
    if (lane_index() == 0) signal_ready(args.inner.ready + tile.row);
  }
}

#endif

template <bool a_across, bool b_across, bool four_bit>
__global__ void __launch_bounds__(Roles<four_bit>::threads, 1) hopper_kernel(const __grid_constant__ HopperArgs args) {
#if defined(QT_HOPPER)
  using R = Roles<four_bit>;
  SharedCarver carve = dynamic_shared();
  const HopperShared<four_bit> shared(carve);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      barrier_init(shared.full + s, 1 + (four_bit ? R::producers * kGroupThreads / kWarp : 0));
      barrier_init(shared.empty + s, kConsumerWarps);
    }
    for (int s = 0; s < 2; s++) {
      barrier_init(shared.ticket_full + s, 1);
      barrier_init(shared.ticket_empty + s, kConsumerWarps + (four_bit ? R::producers * kGroupThreads / kWarp : 0));
    }
    barrier_init_fence();
  }
  if constexpr (four_bit) {
    if (args.four_bit.weight.nested_absmax && threadIdx.x < 256)
      shared.nested_code[threadIdx.x] = args.four_bit.weight.nested_code[threadIdx.x];
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (group < R::producers) {
    fewer_registers<R::producer_registers>();
    if (four_bit || threadIdx.x == 0) produce<a_across, b_across, four_bit>(args, shared);
  } else {
    more_registers<R::consumer_registers>();
    consume<a_across, b_across, four_bit>(args, shared, group - R::producers);
  }
#endif
}

template <bool a_across, bool b_across, bool four_bit>
qt_status launch_hopper(qt_stream* stream, const HopperArgs& args) {
  const int64_t most = stream->multiprocessors;
  return launch(hopper_kernel<a_across, b_across, four_bit>, static_cast<unsigned>(args.tiles < most ? args.tiles : most),
                Roles<four_bit>::threads, shared_bytes<HopperShared<four_bit>>(), stream, args);
}

bool map_factor(TensorMap* map, const DenseFactor& f, bool across, int64_t outers, int64_t k, int tile_outers) {
  return make_tensor_map(map, f.data, across ? k : outers, across ? outers : k, f.stride, across ? kStepDepth : tile_outers);
}

}  // namespace

bool hopper_takes(const qt_stream* stream, int64_t m, int64_t n) {
  const int64_t tiles = ceil_div<int64_t>(m, kRows) * ceil_div<int64_t>(n, kColumns);
  return stream->compute == 90 && m > 64 && n > 32 && 2 * tiles >= stream->multiprocessors && m < (1 << 30) && n < (1 << 30);
}

qt_status gemm_hopper(qt_stream* stream, const MmaArgs& product, bool four_bit, bool a_across, bool b_across) {
  HopperArgs args{};
  const Epilogue& e = product.epilogue;
  const int count = product.steps > product.first_steps ? 2 : 1;
  for (int i = 0; i < count; i++) {
    args.k[i] = product.k[i];
    bool made = map_factor(&args.a[i], product.a[i], a_across, e.m, product.k[i], kRows);
    if (!(four_bit && i == 0)) made = made && map_factor(&args.b[i], product.b[i], b_across, e.n, product.k[i], kColumns);
    if (!made) return stream->fail(QT_DEVICE_ERROR, "the driver cannot describe a matrix to the GPU's copy engine");
  }
  args.four_bit = product.four_bit;
  args.scale = product.scale;
  args.row_tiles = ceil_div<int64_t>(e.m, kRows);
  args.column_tiles = ceil_div<int64_t>(e.n, kColumns);
  args.first_steps = product.first_steps;
  args.steps = product.steps;
  args.epilogue = e;
  args.inner = product.inner;
  const MmaTask& inner = args.inner.task;
  args.tiles = args.row_tiles * args.column_tiles + inner.tiles();
  if (inner.row_tiles > 0 && !map_factor(&args.inner_b, inner.b[0], b_across, inner.epilogue.n, inner.k[0], kColumns))
    return stream->fail(QT_DEVICE_ERROR, "the driver cannot describe a matrix to the GPU's copy engine");
  if (four_bit)
    return b_across ? launch_hopper<false, true, true>(stream, args) : launch_hopper<false, false, true>(stream, args);
  if (a_across) return launch_hopper<true, true, false>(stream, args);
  return b_across ? launch_hopper<false, true, false>(stream, args) : launch_hopper<false, false, false>(stream, args);
}

}  // namespace quantune::cuda
