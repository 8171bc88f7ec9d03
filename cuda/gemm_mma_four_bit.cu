// Tensor core products with a 4-bit weight as B: x Wᵀ (along k) and dy W (across).
#include "gemm_mma.cuh"

namespace quantune::cuda {

namespace {

template <class Shape>
qt_status launch_shape(qt_stream* stream, const MmaArgs& args, int64_t splits, bool b_across) {
  return b_across ? launch_mma<Shape, false, true, true>(stream, args, splits)
                  : launch_mma<Shape, false, false, true>(stream, args, splits);
}

}  // namespace

qt_status launch_mma_four_bit(qt_stream* stream, const MmaArgs& args, int64_t splits, MmaTile tile, bool b_across) {
  switch (tile) {
    case MmaTile::kLarge:
      return launch_shape<MmaLarge>(stream, args, splits, b_across);
    case MmaTile::kMedium:
      return launch_shape<MmaMedium>(stream, args, splits, b_across);
    default:
      return launch_shape<MmaFlat>(stream, args, splits, b_across);
  }
}

}  // namespace quantune::cuda
