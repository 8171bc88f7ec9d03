// What Hopper alone has: tensor copies, barriers that count bytes, and wgmma with both operands in shared memory, either way
// round. Runs on a GPU of sm_90a, and under emulation as one.
#include "../device/hopper.h"
#include "../device/shared.h"
#include "../device/warp.h"
#include "testing.h"

namespace quantune::cuda::test {
namespace {

constexpr int kDepth = 64;
constexpr uint32_t kBox = 64 * 128;  // bytes of 64 rows

struct Tiles {
  char *a, *b;
  uint64_t* barrier;
  __host__ __device__ explicit Tiles(SharedCarver& carve) {
    a = carve.array<char>(kBox, 1024);
    b = carve.array<char>(2 * kBox, 1024);
    barrier = carve.array<uint64_t>(1);
  }
};

// D[64, 128] of one warpgroup, over k in [0, 64). across: A is [k, 64] and B is [k, 128], else [64, k] and [128, k]. stored:
// B's tile is written by ordinary stores, as dequantized weights are.
template <int across, bool stored>
__global__ void __launch_bounds__(128)
    tile_product(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const bf16* b, float* out) {
#if defined(QT_HOPPER)
  SharedCarver carve = dynamic_shared();
  Tiles tiles(carve);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4, t = lane % 4;
  if (thread == 0) {
    barrier_init(tiles.barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (thread == 0) {
    barrier_expect(tiles.barrier, (stored ? 1 : 3) * kBox);
    copy_box(tiles.a, &map_a, tiles.barrier, 0, 0);
    if (!stored) {
      copy_box(tiles.b, &map_b, tiles.barrier, 0, 0);
      copy_box(tiles.b + kBox, &map_b, tiles.barrier, across ? 64 : 0, across ? 0 : 64);
    }
  }
  if (stored) {
    for (int i = thread; i < 2 * 64 * 8; i += 128) {  // a row of 128 bytes of one of the boxes, and its chunk
      const int box = i / 512, row = i / 8 % 64, chunk = i % 8;
      const bf16* from = across ? b + row * 128 + box * 64 + chunk * 8 : b + (box * 64 + row) * kDepth + chunk * 8;
      store_pack(reinterpret_cast<bf16*>(tiles.b + box * kBox + row * 128 + (chunk ^ (row & 7)) * 16), load_pack<8>(from));
    }
    async_proxy_fence();
    __syncthreads();
  }
  barrier_wait(tiles.barrier, 0);
  float d[64];
  for (float& value : d) value = 1.0f;
  wgmma_fence();
  for (int k = 0; k < kDepth / 16; k++) {
    const int step = across ? 2048 * k : 32 * k;
    wgmma_64x128<across, across>(d, tile_descriptor(tiles.a + step, across ? kBox : 16),
                                 tile_descriptor(tiles.b + step, across ? kBox : 16));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_finished(d);
  for (int i = 0; i < 64; i++) {
    const int row = thread / 32 * 16 + g + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
    out[row * 128 + column] = d[i];
  }
#endif
}

template <int across, bool stored>
void test_tile_product(const char* name) {
  Environment& e = environment();
  Buffer<bf16> a(64 * kDepth), b(128 * kDepth);
  Buffer<float> d(64 * 128);
  for (unsigned int i = 0; i < 64 * kDepth; i++) a[i] = from_float<bf16>(number(i));
  for (unsigned int i = 0; i < 128 * kDepth; i++) b[i] = from_float<bf16>(number(i + 9000));
  a.put();
  b.put();
  TensorMap map_a, map_b;
  bool maps =
      across
          ? make_tensor_map(&map_a, a.data, kDepth, 64, 64, 64) && make_tensor_map(&map_b, b.data, kDepth, 128, 128, 64)
          : make_tensor_map(&map_a, a.data, 64, kDepth, kDepth, 64) && make_tensor_map(&map_b, b.data, 128, kDepth, kDepth, 64);
  expect(maps, "tensor maps");
  expect(launch(tile_product<across, stored>, 1, 128, shared_bytes<Tiles>(), e.stream, map_a, map_b, b.data, d.data) == QT_OK,
         "launch");
  d.get();
  bool right = true;
  for (size_t i = 0; i < 64; i++) {
    for (size_t j = 0; j < 128; j++) {
      float sum = 1.0f;
      for (size_t k = 0; k < kDepth; k++) {
        sum += across ? to_float(a[k * 64 + i]) * to_float(b[k * 128 + j])
                      : to_float(a[i * kDepth + k]) * to_float(b[j * kDepth + k]);
      }
      right &= d[i * 128 + j] == sum;  // multiples of 2^-12 below 2^7: exact in any order
    }
  }
  expect(right, name);
}

}  // namespace

// Called by the program of the primitives.
void test_hopper() {
  if (environment().stream->compute / 10 != 9) return;
  test_tile_product<0, false>("wgmma over rows along the outer index");
  test_tile_product<1, false>("wgmma over rows along k");
  test_tile_product<0, true>("wgmma over rows along the outer index, stored");
  test_tile_product<1, true>("wgmma over rows along k, stored");
}

}  // namespace quantune::cuda::test
