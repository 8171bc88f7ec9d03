// Prepares a product for the tensor core kernels: which tile, how k is split, and copies in bfloat16 of the factors that the
// kernels cannot read in place.
#include "gemm_mma.cuh"

namespace quantune::cuda {

namespace {

// out [rows, stride] = the factor in bfloat16, times scale; rows are outer indices or, across, indices of k. Beyond `columns`
// zeros. Eight elements a thread.
__global__ void __launch_bounds__(256)
    pack_kernel(bf16* out, const Source s, bool across, int64_t rows, int64_t columns, int64_t stride, float scale) {
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, chunks = stride / 8;
  if (chunk >= rows * chunks) return;
  const int64_t row = chunk / chunks, column = chunk % chunks * 8;
  Pack<bf16, 8> packed;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int64_t c = column + i;
    packed[i] = from_float<bf16>(c < columns ? (across ? s.at(c, row) : s.at(row, c)) * scale : 0.0f);
  }
  store_pack(out + row * stride + column, packed);
}

bool is_across(const Factor& f) { return f.k_stride != 1; }

// The factor as the tiles read it: in place, or a copy in scratch memory.
qt_status dense_factor(qt_stream* stream, const Factor& f, bool across, int64_t outers, int64_t k, float scale,
                       DenseFactor* out) {
  const int64_t rows = across ? k : outers, columns = across ? outers : k;
  const int64_t stride = is_across(f) ? f.k_stride : f.outer_stride;
  if (f.dtype == QT_BFLOAT16 && scale == 1.0f && is_across(f) == across && stride % 8 == 0 && columns % 8 == 0 &&
      reinterpret_cast<uintptr_t>(f.data) % 16 == 0) {
    *out = {static_cast<const bf16*>(f.data), stride};
    return QT_OK;
  }
  const int64_t packed_stride = round_up(columns, 8);
  bf16* packed = stream->scratch_of<bf16>(rows * packed_stride + 8);
  if (!packed) return stream->out_of_scratch();
  *out = {packed, packed_stride};
  return launch(pack_kernel, static_cast<unsigned>(ceil_div<int64_t>(rows * packed_stride / 8, 256)), 256, 0, stream, packed,
                Source(f), across, rows, columns, packed_stride, scale);
}

bool tiles_read_codes(const Factor& f) {
  const int64_t columns = is_across(f) ? f.k_stride : f.outer_stride;
  return f.quant && columns % 64 == 0 && reinterpret_cast<uintptr_t>(f.data) % 16 == 0;
}

constexpr int64_t kLargeShared = 164 * 1024;

MmaTile choose_tile(const qt_stream* stream, int64_t m, int64_t n, bool four_bit) {
  if (n <= 32 && !four_bit) return MmaTile::kNarrow;
  if (m <= 64) return MmaTile::kFlat;
  const int64_t large = ceil_div<int64_t>(m, 256) * ceil_div<int64_t>(n, 128);
  return large >= stream->multiprocessors && stream->shared_limit >= kLargeShared - 1024 ? MmaTile::kLarge : MmaTile::kMedium;
}

int64_t tile_rows(MmaTile tile) { return tile == MmaTile::kLarge ? 256 : tile == MmaTile::kFlat ? 64 : 128; }
int64_t tile_columns(MmaTile tile) { return tile == MmaTile::kNarrow ? 32 : 128; }

}  // namespace

qt_status gemm_mma(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c) {
  MmaArgs args{};
  const Product& first = products[0];
  const bool four_bit = tiles_read_codes(first.b), b_across = is_across(first.b);
  const bool a_across = is_across(first.a) && b_across && !four_bit;
  args.scale = first.scale;
  for (int i = 0; i < count; i++) {
    const Product& p = products[i];
    args.k[i] = p.k;
    args.steps += ceil_div<int64_t>(p.k, kStepDepth);
    if (i == 0) args.first_steps = args.steps;
    if (qt_status status = dense_factor(stream, p.a, a_across, m, p.k, 1.0f, &args.a[i])) return status;
    if (i == 0 && four_bit) {
      args.four_bit.weight = FourBit(p.b.data, p.b.quant, p.b.dtype);
      args.four_bit.columns = b_across ? p.b.k_stride : p.b.outer_stride;
      four_bit_code(p.b.dtype, args.four_bit.values);
    } else {
      const float scale = i == 0 ? 1.0f : p.scale / first.scale;
      if (qt_status status = dense_factor(stream, p.b, b_across, n, p.k, scale, &args.b[i])) return status;
    }
  }
  if (hopper_takes(stream, m, n) && args.steps > 0) {
    args.epilogue = Epilogue(c, m, n, nullptr);
    return gemm_hopper(stream, args, four_bit, a_across, b_across);
  }
  const MmaTile tile = choose_tile(stream, m, n, four_bit);
  args.row_tiles = ceil_div(m, tile_rows(tile));
  args.column_tiles = ceil_div(n, tile_columns(tile));
  int64_t splits = choose_splits(stream, args.row_tiles * args.column_tiles, args.steps, 4);
  const int64_t steps = args.steps > 0 ? args.steps : 1;
  args.steps_per_split = ceil_div(steps, splits);
  splits = ceil_div(steps, args.steps_per_split);
  float* partial = nullptr;
  if (splits > 1 && !(partial = stream->scratch_of<float>(splits * m * n))) return stream->out_of_scratch();
  args.epilogue = Epilogue(c, m, n, partial);
  const qt_status status = four_bit ? launch_mma_four_bit(stream, args, splits, tile, b_across)
                                    : launch_mma_dense(stream, args, splits, tile, a_across, b_across);
  if (status || splits == 1) return status;
  return finish_splits(stream, args.epilogue, splits);
}

}  // namespace quantune::cuda
