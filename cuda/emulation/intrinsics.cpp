// The collectives of a warp: shuffles, votes, ldmatrix, mma; asynchronous copies; atomics. Built without any sanitizer's
// instrumentation of the race build, which is told of accesses by note_access.
#include <cmath>
#include <cstring>

#include "block.h"
#include "engine.h"
#include "include/cuda_bf16.h"
#include "include/cuda_fp16.h"
#include "include/cuda_runtime.h"
#include "mma.h"
#include "ready.h"

namespace quantune::cuda::emulation {

void shuffle_combine(unsigned int mask, void* const* given, void* const* taken, int) {
  for (unsigned int lane = 0; lane < kLanes; lane++) {
    if (!(mask >> lane & 1)) continue;
    const auto* request = static_cast<const ShuffleRequest*>(given[lane]);
    unsigned int source = static_cast<unsigned int>(request->source) % kLanes;
    if (!(mask >> source & 1))
      kernel_error("lane %u shuffles from lane %u, which the mask %08x does not name", lane, source, mask);
    std::memcpy(taken[lane], static_cast<const ShuffleRequest*>(given[source])->value, 16);
  }
}

void ballot_combine(unsigned int mask, void* const* given, void* const* taken, int) {
  unsigned int votes = 0;
  for (unsigned int lane = 0; lane < kLanes; lane++) {
    if (mask >> lane & 1 && *static_cast<const unsigned int*>(given[lane])) votes |= 1u << lane;
  }
  for (unsigned int lane = 0; lane < kLanes; lane++) {
    if (mask >> lane & 1) *static_cast<unsigned int*>(taken[lane]) = votes;
  }
}

void match_combine(unsigned int mask, void* const* given, void* const* taken, int) {
  for (unsigned int lane = 0; lane < kLanes; lane++) {
    if (!(mask >> lane & 1)) continue;
    unsigned int equal = 0;
    for (unsigned int other = 0; other < kLanes; other++) {
      if (mask >> other & 1 && std::memcmp(given[lane], given[other], 8) == 0) equal |= 1u << other;
    }
    *static_cast<unsigned int*>(taken[lane]) = equal;
  }
}

// ---- ldmatrix and mma ------------------------------------------------------------------------------------------------------
namespace {

void load_combine(unsigned int, void* const* given, void* const* taken, int argument) {
  int matrices = argument >> 1;
  bool transposed = argument & 1;
  for (int m = 0; m < matrices; m++) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; r++) std::memcpy(matrix[r], given[8 * m + r], 16);
    for (int lane = 0; lane < kLanes; lane++) {
      int g = lane / 4, t = lane % 4;
      uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      static_cast<uint32_t*>(taken[lane])[m] = low | high << 16;
    }
  }
}

float bf16_at(uint32_t pair, int i) { return __uint_as_float(i ? pair & 0xffff0000u : pair << 16); }
float fp16_at(uint32_t pair, int i) { return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> (16 * i)))); }
int int8_at(uint32_t quad, int i) { return static_cast<int8_t>(quad >> (8 * i)); }

// Rows of A and columns of B out of the lanes' registers; `per` elements a register.
template <class T, int per, class At>
void product(void* const* given, const At& at) {
  constexpr int K = 8 * per;
  T a[16][K], b[K][8];
  for (int lane = 0; lane < kLanes; lane++) {
    const auto* operands = static_cast<const ProductOperands*>(given[lane]);
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < per; i++) {
      a[g][per * t + i] = at(operands->a[0], i);
      a[g + 8][per * t + i] = at(operands->a[1], i);
      a[g][per * t + K / 2 + i] = at(operands->a[2], i);
      a[g + 8][per * t + K / 2 + i] = at(operands->a[3], i);
      b[per * t + i][g] = at(operands->b[0], i);
      b[per * t + K / 2 + i][g] = at(operands->b[1], i);
    }
  }
  T sum[16][8] = {};
  for (int i = 0; i < 16; i++) {
    for (int k = 0; k < K; k++) {
      for (int j = 0; j < 8; j++) sum[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int lane = 0; lane < kLanes; lane++) {
    auto* d = static_cast<T*>(static_cast<const ProductOperands*>(given[lane])->d);
    int g = lane / 4, t = lane % 4;
    d[0] += sum[g][2 * t];
    d[1] += sum[g][2 * t + 1];
    d[2] += sum[g + 8][2 * t];
    d[3] += sum[g + 8][2 * t + 1];
  }
}

void product_combine(unsigned int, void* const* given, void* const*, int argument) {
  switch (static_cast<Operand>(argument)) {
    case Operand::kBf16:
      return product<float, 2>(given, bf16_at);
    case Operand::kFp16:
      return product<float, 2>(given, fp16_at);
    case Operand::kInt8:
      return product<int32_t, 4>(given, int8_at);
  }
}

}  // namespace

void load_matrices(const void* row, uint32_t* registers, int matrices, bool transposed) {
  if (this_block().self()->lane < static_cast<unsigned int>(8 * matrices)) {
    if (reinterpret_cast<uintptr_t>(row) % 16) kernel_error("ldmatrix: a row's address is not a multiple of 16 bytes");
    shared_offset(row);
    note_access(row, 16, false);
  }
  collective(Kind::kLoadMatrix, 0xffffffffu, const_cast<void*>(row), registers, load_combine, matrices * 2 + transposed);
}

void warp_product(ProductOperands operands, Operand type) {
  collective(Kind::kProduct, 0xffffffffu, &operands, nullptr, product_combine, static_cast<int>(type));
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------------
namespace {

void land(PendingCopy* copy) {
  if (copy->landed) return;
  copy->landed = true;
  if (copy->valid)
    std::memcpy(copy->to, copy->from, static_cast<size_t>(copy->bytes));
  else
    std::memset(copy->to, 0, static_cast<size_t>(copy->bytes));
}

}  // namespace

void copy_async(void* to, const void* from, int bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % static_cast<size_t>(bytes) ||
      reinterpret_cast<uintptr_t>(from) % static_cast<size_t>(bytes)) {
    kernel_error("an asynchronous copy of %d bytes is not aligned to them (to %p, from %p)", bytes, to, from);
  }
  shared_offset(to);
  Fiber* self = this_block().self();
  self->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, valid, false, -1});
  if (valid) note_access(from, static_cast<size_t>(bytes), false);
  note_access(to, static_cast<size_t>(bytes), true);
  bool now = options().async == Options::kEager || (options().async == Options::kSometimes && this_block().random() % 2);
  if (now) land(&self->copies.back());
}

void async_commit() {
  Fiber* self = this_block().self();
  for (PendingCopy& copy : self->copies) {
    if (copy.group < 0) copy.group = self->groups;
  }
  self->groups++;
}

void async_wait(int groups) {
  Fiber* self = this_block().self();
  size_t kept = 0;
  for (PendingCopy& copy : self->copies) {
    if (copy.group >= 0 && copy.group < self->groups - groups) {
      land(&copy);
      note_access(copy.to, static_cast<size_t>(copy.bytes), true);
    } else {
      self->copies[kept++] = copy;
    }
  }
  self->copies.resize(kept);
}

// ---- atomics ---------------------------------------------------------------------------------------------------------------

uint32_t atomic_compare(void* address, uint64_t expected, uint64_t desired, int bytes, uint64_t* old) {
  // Streams run on host threads of their own, so the step is atomic on the host as well.
  if (reinterpret_cast<uintptr_t>(address) % static_cast<size_t>(bytes)) kernel_error("an atomic's address is not aligned");
  auto step = [&](auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    T e = static_cast<T>(expected);
    bool done = __atomic_compare_exchange_n(p, &e, static_cast<T>(desired), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    *old = e;
    return done;
  };
  if (bytes == 2) return step(static_cast<uint16_t*>(address));
  if (bytes == 4) return step(static_cast<uint32_t*>(address));
  return step(static_cast<uint64_t*>(address));
}

void note_access(const void* address, size_t bytes, bool writes) {
  race_access(this_block().self(), address, bytes, writes, __builtin_return_address(0));
}

void signal_ready(int32_t* counter) {
  race_publish(this_block().self(), counter);
  __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
}

void wait_ready(const int32_t* counter, int32_t count) {
  const int32_t seen = __atomic_load_n(counter, __ATOMIC_SEQ_CST);
  if (seen < count) kernel_error("waits for %d blocks at a counter, and %d came before", count, seen);
  race_observe(this_block().self(), counter);
}

}  // namespace quantune::cuda::emulation
