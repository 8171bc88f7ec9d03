// What Hopper alone has (sm_90a; the kernels that use it are empty for other targets): barriers in shared memory that count
// bytes, tensor copies (TMA), and products of a warpgroup whose operands lie in shared memory (wgmma).
//
// Tiles have rows of 128 bytes, 64 bfloat16, at addresses that are multiples of 1024, their 16-byte chunks swizzled: chunk c of
// row r lies at chunk c ^ (r % 8), as tensor copies write them and wgmma reads them.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "tensor_map.h"

#if defined(QT_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define QT_HOPPER 1
#endif

#if defined(QT_EMULATED)
#include "../emulation/hopper.h"
#elif defined(QT_HOPPER)
#include "async.h"

namespace quantune::cuda {

// ---- barriers --------------------------------------------------------------------------------------------------------

// 8 bytes of shared memory. A phase ends when `arrivals` have come and all expected bytes have landed.
__device__ inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After the inits, before a __syncthreads: the copy engine sees them.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and expects so many bytes of tensor copies in this phase.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Until the phase of that parity (0 first) has ended.
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  } while (!done);
}

// ---- tensor copies ---------------------------------------------------------------------------------------------------

// Starts the copy of the map's box at (column, row) into shared memory; it counts against the barrier's expected bytes. One
// thread.
__device__ inline void copy_box(void* shared, const TensorMap* map, uint64_t* barrier, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(shared)),
               "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(row)
               : "memory");
}
// What this thread wrote to shared memory by ordinary stores is seen by wgmma and the copy engine after the next barrier.
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Between this thread's ordinary accesses to global memory and tensor copies of the same data, on both sides of a counter.
__device__ inline void global_proxy_fence() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- wgmma -----------------------------------------------------------------------------------------------------------

// A tile as an operand of wgmma. Rows along the outer index, k running along them: `block` is not used and 16 in k are 32 bytes
// further. Rows along k: tiles of 64 outer indices x k rows, `block` bytes apart, and 16 in k are 2048 bytes further. In cute's
// words (make_gmma_desc): swizzle of 128 bytes, base offset 0, the stride offset 1024 for both, `block` the leading offset.
__device__ inline uint64_t tile_descriptor(const void* shared, uint32_t block) {
  const uint64_t address = shared_address(shared);
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(block >> 4) << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
// Before the first product of a batch: registers and ordinary stores that it reads are ready.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int groups>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}
// After a wait: whatever reads the sums stays behind it (to the compiler they were finished when the product was issued).
__device__ inline void wgmma_finished(float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// D[64, 128] += A[64, 16] B[16, 128] by the four warps of a warpgroup, warp w having rows 16 w and on: d[4 j + e] is what d[e]
// of mma m16n8k16 is, of the columns 8 j and on. `across`: the tile's rows are indices of k.
template <int a_across, int b_across>
__device__ inline void wgmma_64x128(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, %66, %67;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
        "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
        "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]),
        "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
        "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "n"(a_across), "n"(b_across));
}

// ---- registers of a warpgroup, multiples of 8 ------------------------------------------------------------------------

template <int registers>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace quantune::cuda
#endif
