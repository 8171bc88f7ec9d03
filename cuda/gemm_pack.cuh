// Factors as the tiles of the tensor core kernels read them: in place, or copies in bfloat16 that one launch makes.
#pragma once
#include "gemm_kernels.cuh"
#include "mma_tiles.cuh"

namespace quantune::cuda {

// A copy [rows, stride] of a factor in bfloat16, times scale; rows are outer indices or, across, indices of k. Beyond `columns`
// zeros.
struct PackJob {
  bf16* out;
  Source source;
  bool across;
  int64_t rows, columns, stride;
  float scale;
  int64_t first_block;
};

constexpr int kMostPackJobs = 8;
struct PackJobs {
  PackJob job[kMostPackJobs];
  int32_t count;
  int32_t* zeros;  // or null: so many counters become 0
  int64_t zero_count;
};

inline bool is_across(const Factor& f) { return f.k_stride != 1; }

// Whether tiles can read a factor where it is; `columns` is what runs along its rows.
inline bool tiles_read(const Factor& f, bool across, int64_t columns, float scale) {
  const int64_t stride = is_across(f) ? f.k_stride : f.outer_stride;
  return f.dtype == QT_BFLOAT16 && scale == 1.0f && is_across(f) == across && stride % 8 == 0 && columns % 8 == 0 &&
         reinterpret_cast<uintptr_t>(f.data) % 16 == 0;
}

class Packing {
 public:
  // Says where tiles find the factor once launch() has run.
  qt_status add(qt_stream* stream, const Factor& f, bool across, int64_t outers, int64_t k, float scale, DenseFactor* out);
  // A copy at `out`, rows a multiple of eight apart.
  void copy(const Factor& f, bool across, int64_t outers, int64_t k, bf16* out, float scale = 1.0f);
  void clear(int32_t* counters, int64_t count) { jobs_.zeros = counters, jobs_.zero_count = count; }
  qt_status launch(qt_stream* stream);

 private:
  PackJobs jobs_{};
  int64_t blocks_ = 0;
};

}  // namespace quantune::cuda
