// Hopper's barriers, tensor copies and warpgroup products. A product is computed when it is waited for (lazily) or when it is
// issued, by each thread for itself: its share of D depends on no other thread's registers.
#include "hopper.h"

#include <cstring>
#include <map>
#include <vector>

#include "block.h"
#include "include/cuda_bf16.h"

namespace quantune::cuda::emulation {

namespace {

// What the 8 bytes of a barrier hold.
struct BarrierState {
  int32_t bytes;  // expected less landed
  uint16_t arrivals;
  uint16_t missing : 15, phase : 1;
};
static_assert(sizeof(BarrierState) == 8, "a barrier is 8 bytes");

struct Landing {
  char* to;
  TensorMap map;
  int column, row;
};
struct LateProduct {
  float* d;
  int columns, group;
  uint64_t a, b;
  bool a_across, b_across;
};

// Of the block that runs, beside its shared memory.
struct Extras {
  uint64_t grid = ~uint64_t{0};
  unsigned int block = 0;
  std::map<void*, std::vector<Landing>> landings;
  std::map<void*, RaceClock> clocks;
  std::vector<std::vector<LateProduct>> products;  // of each thread
  std::vector<int> groups;
};

Extras& extras() {
  static thread_local Extras instance;
  const Block& block = this_block();
  if (instance.grid != block.grid_serial || instance.block != block.serial) {
    instance = {};
    instance.grid = block.grid_serial;
    instance.block = block.serial;
    instance.products.resize(block.threads);
    instance.groups.resize(block.threads);
  }
  return instance;
}

BarrierState* state_of(uint64_t* barrier) { return reinterpret_cast<BarrierState*>(barrier); }

void end_phase_if_complete(BarrierState* state) {
  if (state->missing != 0 || state->bytes != 0) return;
  state->phase ^= 1;
  state->missing = state->arrivals;
}

char* swizzled(char* base, size_t offset) { return base + (offset ^ (offset >> 7 & 7) << 4); }

void land(const Landing& l, uint64_t* barrier) {
  const auto* data = static_cast<const uint16_t*>(l.map.data);
  for (int r = 0; r < l.map.box_rows; r++)
    for (int c = 0; c < 64; c++) {
      const int64_t row = int64_t{l.row} + r, column = int64_t{l.column} + c;
      uint16_t value = 0;
      if (row >= 0 && row < l.map.rows && column >= 0 && column < l.map.columns) value = data[row * l.map.stride + column];
      std::memcpy(swizzled(l.to, static_cast<size_t>(r) * 128 + static_cast<size_t>(c) * 2), &value, 2);
    }
  state_of(barrier)->bytes -= l.map.box_rows * 128;
  end_phase_if_complete(state_of(barrier));
}

struct Awaited {
  uint64_t* barrier;
  uint32_t parity;
};

bool phase_has_ended(void* context) {
  auto* awaited = static_cast<Awaited*>(context);
  auto& late = extras().landings[awaited->barrier];
  std::vector<Landing> now;
  now.swap(late);
  for (const Landing& l : now) land(l, awaited->barrier);
  return state_of(awaited->barrier)->phase != (awaited->parity & 1);
}

float element(const char* shared, uint64_t descriptor, int outer, int k, bool across) {
  const size_t start = (descriptor & 0x3fff) << 4, block = (descriptor >> 16 & 0x3fff) << 4,
               group = (descriptor >> 32 & 0x3fff) << 4;
  const auto o = static_cast<size_t>(outer), i = static_cast<size_t>(k);
  const size_t offset =
      across ? start + o / 64 * block + i / 8 * group + i % 8 * 128 + o % 64 * 2 : start + o / 8 * group + o % 8 * 128 + i * 2;
  const size_t at = offset ^ (offset >> 7 & 7) << 4;  // of the address, not of the place in the tile
  note_access(shared + at, 2, false);
  uint16_t bits;
  std::memcpy(&bits, shared + at, 2);
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

void multiply(const LateProduct& p, unsigned int thread) {
  const char* shared = this_block().shared;
  const int g = static_cast<int>(thread % 32 / 4), t = static_cast<int>(thread % 4), warp = static_cast<int>(thread / 32 % 4);
  float a[2][16];
  for (int half = 0; half < 2; half++)
    for (int k = 0; k < 16; k++) a[half][k] = element(shared, p.a, warp * 16 + half * 8 + g, k, p.a_across);
  for (int j = 0; j < p.columns / 8; j++)
    for (int e = 0; e < 2; e++) {
      float low = p.d[4 * j + e], high = p.d[4 * j + 2 + e];
      for (int k = 0; k < 16; k++) {
        const float b = element(shared, p.b, 8 * j + 2 * t + e, k, p.b_across);
        low += a[0][k] * b;
        high += a[1][k] * b;
      }
      p.d[4 * j + e] = low;
      p.d[4 * j + 2 + e] = high;
    }
}

}  // namespace

void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  BarrierState state{0, static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals & 0x7fff), 0};
  std::memcpy(barrier, &state, sizeof state);
}

void barrier_arrive(uint64_t* barrier, uint32_t bytes) {
  BarrierState* state = state_of(barrier);
  if (state->missing == 0) kernel_error("more arrivals at a barrier than it was made for");
  race_release(this_block().self(), &extras().clocks[barrier]);
  state->bytes += static_cast<int32_t>(bytes);
  state->missing = static_cast<uint16_t>((state->missing - 1) & 0x7fff);
  end_phase_if_complete(state);
}

void barrier_wait(uint64_t* barrier, uint32_t parity) {
  Awaited awaited = {barrier, parity};
  wait_until(phase_has_ended, &awaited, "a barrier in shared memory");
  race_acquire(this_block().self(), extras().clocks[barrier]);
}

void copy_box(void* shared, const TensorMap& map, uint64_t* barrier, int column, int row) {
  const size_t offset = shared_offset(shared);
  if (offset % 1024 != 0) kernel_error("a tensor copy to an address that is no multiple of 1024");
  note_access(shared, static_cast<size_t>(map.box_rows) * 128, true);
  race_release(this_block().self(), &extras().clocks[barrier]);
  const Landing landing = {static_cast<char*>(shared), map, column, row};
  const bool now = options().async == Options::kEager || (options().async == Options::kSometimes && this_block().random() % 2);
  if (now)
    land(landing, barrier);
  else
    extras().landings[barrier].push_back(landing);
}

void wgmma(float* d, int columns, uint64_t a, uint64_t b, bool a_across, bool b_across) {
  const unsigned int thread = this_block().self()->linear;
  const LateProduct product = {d, columns, extras().groups[thread], a, b, a_across, b_across};
  if (options().async == Options::kEager)
    multiply(product, thread);
  else
    extras().products[thread].push_back(product);
}

void wgmma_commit() { extras().groups[this_block().self()->linear]++; }

void wgmma_wait(int groups) {
  const unsigned int thread = this_block().self()->linear;
  auto& products = extras().products[thread];
  size_t done = 0;
  for (; done < products.size() && products[done].group < extras().groups[thread] - groups; done++)
    multiply(products[done], thread);
  products.erase(products.begin(), products.begin() + static_cast<std::ptrdiff_t>(done));
  sync_warp(0xffffffffu);  // a warp waits as one
}

}  // namespace quantune::cuda::emulation
