// Copies of factors in bfloat16, as tiles read them.
#include "device/launch.h"
#include "gemm_pack.cuh"

namespace quantune::cuda {

namespace {

constexpr int kThreads = 256;

// Eight elements a thread.
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ PackJobs jobs) {
  const int64_t block = blockIdx.x;
  if (block == 0)
    for (int64_t i = threadIdx.x; i < jobs.zero_count; i += kThreads) jobs.zeros[i] = 0;
  if (jobs.count == 0) return;
  int at = 0;
  while (at + 1 < jobs.count && block >= jobs.job[at + 1].first_block) at++;
  const PackJob& job = jobs.job[at];
  const int64_t chunk = (block - job.first_block) * kThreads + threadIdx.x, chunks = job.stride / 8;
  if (chunk >= job.rows * chunks) return;
  const int64_t row = chunk / chunks, column = chunk % chunks * 8;
  Pack<bf16, 8> packed;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int64_t c = column + i;
    const float value = c < job.columns ? (job.across ? job.source.at(c, row) : job.source.at(row, c)) : 0.0f;
    packed[i] = from_float<bf16>(value * job.scale);
  }
  store_pack(job.out + row * job.stride + column, packed);
}

}  // namespace

qt_status Packing::add(qt_stream* stream, const Factor& f, bool across, int64_t outers, int64_t k, float scale,
                       DenseFactor* out) {
  const int64_t rows = across ? k : outers, columns = across ? outers : k;
  if (tiles_read(f, across, columns, scale)) {
    *out = {static_cast<const bf16*>(f.data), is_across(f) ? f.k_stride : f.outer_stride};
    return QT_OK;
  }
  if (jobs_.count == kMostPackJobs) {
    if (qt_status status = launch(stream)) return status;
  }
  const int64_t stride = round_up(columns, 8);
  bf16* packed = stream->scratch_of<bf16>(rows * stride + 8);
  if (!packed) return stream->out_of_scratch();
  *out = {packed, stride};
  copy(f, across, outers, k, packed, scale);
  return QT_OK;
}

void Packing::copy(const Factor& f, bool across, int64_t outers, int64_t k, bf16* out, float scale) {
  const int64_t rows = across ? k : outers, columns = across ? outers : k, stride = round_up(columns, 8);
  jobs_.job[jobs_.count++] = {out, Source(f), across, rows, columns, stride, scale, blocks_};
  blocks_ += ceil_div<int64_t>(rows * stride / 8, kThreads);
}

qt_status Packing::launch(qt_stream* stream) {
  if (blocks_ == 0 && jobs_.zero_count > 0) blocks_ = 1;
  const qt_status status = cuda::launch(pack_kernel, static_cast<unsigned>(blocks_), kThreads, 0, stream, jobs_);
  jobs_ = {};
  blocks_ = 0;
  return status;
}

}  // namespace quantune::cuda
