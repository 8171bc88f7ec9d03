// Tiles of 4-bit weights on their way into the bfloat16 tiles of mma_tiles.cuh: each thread owns a run of codes that lies
// within one block of the weight, copies it to its own place in shared memory some steps ahead, and turns it into bfloat16
// while the tensor cores work on the step before.
//
// A value is the code's value times the block's scale in float32, rounded once, as `dequantize` to bfloat16 gives it: a thread
// multiplies the 16 values of the code by the scale and rounds them (32 instructions a run), then looks codes up by byte
// permutation, 2.6 instructions an element.
#pragma once
#include "four_bit.cuh"
#include "mma_tiles.cuh"

namespace quantune::cuda {

struct FourBitFactor {
  FourBit weight;
  int64_t columns;   // of the weight as it lies in memory, a multiple of 64
  float values[16];  // of the codes
};

// The sixteen values of one block in bfloat16: their low bytes and their high bytes.
struct ScaledCode {
  uint32_t low[4], high[4];

  __device__ void set(const float (&values)[16], float scale) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t p = pack_bf16(values[4 * i] * scale, values[4 * i + 1] * scale),
                     q = pack_bf16(values[4 * i + 2] * scale, values[4 * i + 3] * scale);
      low[i] = __byte_perm(p, q, 0x6420);
      high[i] = __byte_perm(p, q, 0x7531);
    }
  }
  // Eight codes, as they lie in memory, to eight bfloat16.
  __device__ Pack<uint32_t, 4> decode(uint32_t word) const {
    uint32_t index = word & 0x77777777u, upper = (word >> 1 & 0x44444444u) | 0x32103210u;
    Pack<uint32_t, 4> out;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // Bytes of the elements 1, 0, 3, 2: a byte of codes has the first element in its high half.
      const uint32_t l = __byte_perm(__byte_perm(low[0], low[1], index), __byte_perm(low[2], low[3], index), upper);
      const uint32_t h = __byte_perm(__byte_perm(high[0], high[1], index), __byte_perm(high[2], high[3], index), upper);
      out[2 * half] = __byte_perm(l, h, 0x4051);
      out[2 * half + 1] = __byte_perm(l, h, 0x6273);
      index >>= 16;
      upper >>= 16;
    }
    return out;
  }
};

// The scale of a block, loaded ahead of its use.
struct RawScale {
  float value;    // the scale, or the nested one
  uint32_t code;  // of double quantization

  __device__ void load(const FourBit& w, int64_t block, bool valid) {
    value = 0.0f;
    code = 0;
    if (!valid) return;
    if (w.nested_absmax) {
      code = w.absmax[block];
      value = w.nested_absmax[block >> 8];
    } else {
      value = reinterpret_cast<const float*>(w.absmax)[block];
    }
  }
};

// One thread's share of the tiles [tile_outers, kStepDepth] of a 4-bit factor.
// `Shape` says where the chunks of a tile lie.
template <class Shape, bool across, int threads>
struct FourBitRun {
  static constexpr int kCodes = Shape::kElements / threads, kPieces = kCodes / 32;
  static constexpr int kRunsPerRow = Shape::kChunks * 8 / kCodes, kSlots = 4;
  static_assert(kCodes == 32 || kCodes == 64, "runs of 16 or 32 bytes");
  static constexpr int kStagedBytes = kSlots * threads * kCodes / 2;

  int64_t first;             // element of the weight where the run of step 0 starts
  int steps;                 // the run is there in the first `steps` steps
  uint8_t* staged;           // [kSlots][kPieces][threads][16 bytes]
  const float* nested_code;  // in shared memory
  float offset;
  RawScale next;
  ScaledCode code;

  __device__ void start(uint8_t* staged_codes, const float* nested, const FourBitFactor& f, int64_t outer, int64_t outers,
                        int64_t ks) {
    staged = staged_codes + threadIdx.x * 16;
    nested_code = nested;
    offset = f.weight.nested_absmax ? *f.weight.offset : 0.0f;
    const int64_t column = (across ? outer : 0) + run() * kCodes;
    first = ((across ? 0 : outer) + row()) * f.columns + column;
    const bool inside = across ? column < outers : outer + row() < outers;
    steps = inside ? static_cast<int>((ks - (across ? row() : 0) + kStepDepth - 1) / kStepDepth) : 0;
  }
  // Where in the tile the run lies: computed anew, since registers are short.
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kRunsPerRow; }
  __device__ static int run() { return static_cast<int>(threadIdx.x) % kRunsPerRow; }
  // Where this thread's run of a step starts; below 0 where there is none.
  __device__ int64_t position(const FourBitFactor& f, int64_t step) const {
    return step < steps ? first + step * (across ? kStepDepth * f.columns : kStepDepth) : -1;
  }
  __device__ void copy(const FourBitFactor& f, int slot, int64_t at) const {
#pragma unroll
    for (int i = 0; i < kPieces; i++)
      copy_async_16(staged + (slot * kPieces + i) * threads * 16, at < 0 ? f.weight.codes : f.weight.codes + at / 2 + i * 16,
                    at >= 0);
  }
  __device__ void load_scale(const FourBitFactor& f, int64_t at) { next.load(f.weight, at >> f.weight.block_shift, at >= 0); }
  // The code of the run whose scale was loaded last. A run that is not there has scale 0.
  __device__ void prepare(const FourBitFactor& f, bool valid) {
    float scale = next.value;
    if (f.weight.nested_absmax && valid) scale = __fadd_rn(__fmul_rn(nested_code[next.code], next.value), offset);
    code.set(f.values, scale);
  }
  // Quarter `part` of the run.
  __device__ void decode(bf16* tile, int slot, int part) const {
    constexpr int kWords = kCodes / 32;  // of codes, in a quarter
    const uint32_t* words = reinterpret_cast<const uint32_t*>(staged + (slot * kPieces + part * kWords / 4) * threads * 16);
#pragma unroll
    for (int i = 0; i < kWords; i++) {
      const int word = part * kWords + i;
      store_pack(reinterpret_cast<uint32_t*>(tile + Shape::chunk_at(row(), run() * (kCodes / 8) + word) * 8),
                 code.decode(words[word % 4]));
    }
  }
};

}  // namespace quantune::cuda
