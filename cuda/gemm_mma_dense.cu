// Tensor core products of dense factors: x Wᵀ (both along k), dy W (W across), dyᵀ x (both across).
#include "gemm_mma.cuh"

namespace quantune::cuda {

namespace {

template <class Shape>
qt_status launch_shape(qt_stream* stream, const MmaArgs& args, int64_t splits, bool a_across, bool b_across) {
  if (a_across) return launch_mma<Shape, true, true, false>(stream, args, splits);
  if (b_across) return launch_mma<Shape, false, true, false>(stream, args, splits);
  return launch_mma<Shape, false, false, false>(stream, args, splits);
}

}  // namespace

qt_status launch_mma_dense(qt_stream* stream, const MmaArgs& args, int64_t splits, MmaTile tile, bool a_across, bool b_across) {
  switch (tile) {
    case MmaTile::kLarge:
      return launch_shape<MmaLarge>(stream, args, splits, a_across, b_across);
    case MmaTile::kMedium:
      return launch_shape<MmaMedium>(stream, args, splits, a_across, b_across);
    case MmaTile::kFlat:
      return launch_shape<MmaFlat>(stream, args, splits, a_across, b_across);
    default:
      return launch_shape<MmaNarrow>(stream, args, splits, a_across, b_across);
  }
}

}  // namespace quantune::cuda
