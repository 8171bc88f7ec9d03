// Prepares a product for the tensor core kernels: which tile, how k is split, and copies in bfloat16 of the factors that the
// kernels cannot read in place.
#include "gemm_mma.cuh"
#include "gemm_pack.cuh"

namespace quantune::cuda {

namespace {

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

// Which kernel a product gets.
struct Choice {
  bool four_bit, a_across, b_across, hopper;
  MmaTile tile;

  Choice(const qt_stream* stream, int64_t m, int64_t n, const Product& p)
      : four_bit(tiles_read_codes(p.b)),
        a_across(is_across(p.a) && is_across(p.b) && !four_bit),
        b_across(is_across(p.b)),
        hopper(hopper_takes(stream, m, n) && p.k > 0),
        tile(choose_tile(stream, m, n, four_bit)) {}
};

void set_tiles(MmaTask* task, MmaTile tile, int64_t m, int64_t n) {
  task->row_tiles = ceil_div(m, tile_rows(tile));
  task->column_tiles = ceil_div(n, tile_columns(tile));
}

qt_status launch_choice(qt_stream* stream, const MmaArgs& args, const Choice& choice, int64_t splits) {
  return choice.four_bit ? launch_mma_four_bit(stream, args, splits, choice.tile, choice.b_across)
                         : launch_mma_dense(stream, args, splits, choice.tile, choice.a_across, choice.b_across);
}

// With so many rows the tensor cores need longer (2 m n k flops at 700 TFLOP/s) than the memory for two bytes a weight (2 n k
// at 3 TB/s), twice over.
constexpr int64_t kCopiedRows = 512;

// A 4-bit weight as a dense factor of bfloat16, *out, kept beside it; null where it has no copy. Its rows are the weight's.
qt_status copied_weight(qt_stream* stream, const Factor& f, int64_t outers, int64_t k, DenseFactor* out) {
  const int64_t rows = is_across(f) ? k : outers, columns = is_across(f) ? outers : k, stride = round_up(columns, 8);
  bool fresh = false;
  *out = {static_cast<bf16*>(stream->weight_copy(f.data, rows * stride * 2, &fresh)), stride};
  if (!fresh) return QT_OK;
  Packing packing;
  packing.copy(f, is_across(f), outers, k, const_cast<bf16*>(out->data));
  const qt_status status = packing.launch(stream);
  if (status) stream->weight_changes(f.data);
  return status;
}

// The first product's factors.
qt_status first_product(qt_stream* stream, const Product& p, int64_t m, int64_t n, Choice* choice, Packing* packing,
                        MmaArgs* args) {
  args->scale = p.scale;
  args->k[0] = p.k;
  args->first_steps = args->steps = ceil_div<int64_t>(p.k, kStepDepth);
  if (qt_status status = packing->add(stream, p.a, choice->a_across, m, p.k, 1.0f, &args->a[0])) return status;
  if (is_four_bit(p.b.dtype) && m >= kCopiedRows) {
    if (qt_status status = copied_weight(stream, p.b, n, p.k, &args->b[0])) return status;
    if (args->b[0].data) {
      choice->four_bit = false;  // the tiles and the order of sums stay those of codes: the same bits
      return QT_OK;
    }
  }
  if (choice->four_bit) {
    args->four_bit.weight = FourBit(p.b.data, p.b.quant, p.b.dtype);
    args->four_bit.columns = choice->b_across ? p.b.k_stride : p.b.outer_stride;
    four_bit_code(p.b.dtype, args->four_bit.values);
    return QT_OK;
  }
  return packing->add(stream, p.b, choice->b_across, n, p.k, 1.0f, &args->b[0]);
}

}  // namespace

qt_status gemm_mma(qt_stream* stream, int64_t m, int64_t n, const Product* products, int count, const Result& c) {
  MmaArgs args{};
  Packing packing;
  Choice choice(stream, m, n, products[0]);
  if (qt_status status = first_product(stream, products[0], m, n, &choice, &packing, &args)) return status;
  if (count > 1) {
    const Product& p = products[1];
    args.k[1] = p.k;
    args.steps += ceil_div<int64_t>(p.k, kStepDepth);
    if (qt_status status = packing.add(stream, p.a, choice.a_across, m, p.k, 1.0f, &args.a[1])) return status;
    if (qt_status status = packing.add(stream, p.b, choice.b_across, n, p.k, p.scale / args.scale, &args.b[1])) return status;
  }
  if (qt_status status = packing.launch(stream)) return status;
  if (choice.hopper) {
    args.epilogue = Epilogue(c, m, n, nullptr);
    return gemm_hopper(stream, args, choice.four_bit, choice.a_across, choice.b_across);
  }
  set_tiles(&args, choice.tile, m, n);
  int64_t splits = choose_splits(stream, args.tiles(), args.steps, 4);
  const int64_t steps = args.steps > 0 ? args.steps : 1;
  args.steps_per_split = ceil_div(steps, splits);
  splits = ceil_div(steps, args.steps_per_split);
  float* partial = nullptr;
  if (splits > 1 && !(partial = stream->scratch_of<float>(splits * m * n))) return stream->out_of_scratch();
  args.epilogue = Epilogue(c, m, n, partial);
  const qt_status status = launch_choice(stream, args, choice, splits);
  if (status || splits == 1) return status;
  return finish_splits(stream, args.epilogue, splits);
}

// Where k would be split the rows are few, and x stays in the second-level cache between two launches.
bool mma_takes_adapter(const qt_stream* stream, int64_t m, int64_t n, const Product& product, const Adapter& adapter) {
  const Choice choice(stream, m, n, product);
  if (product.a.dtype != QT_BFLOAT16 || choice.a_across || choice.tile == MmaTile::kNarrow) return false;
  MmaArgs args{};
  set_tiles(&args, choice.tile, m, n);
  const int64_t steps = ceil_div<int64_t>(product.k, kStepDepth);
  return steps >= 4 && adapter.rank > 0 && adapter.rank <= 128 && adapter.inner.column_stride == 1 &&
         !adapter.inner.accumulate && (choice.hopper || choose_splits(stream, args.tiles(), steps + 1, 4) == 1);
}

qt_status gemm_mma_adapted(qt_stream* stream, int64_t m, int64_t n, const Product& product, const Adapter& adapter,
                           const Result& c) {
  MmaArgs args{};
  MmaInner& inner = args.inner;
  Packing packing;
  Choice choice(stream, m, n, product);
  if (qt_status status = first_product(stream, product, m, n, &choice, &packing, &args)) return status;
  set_tiles(&args, choice.tile, m, n);
  args.k[1] = adapter.rank;
  args.steps += ceil_div<int64_t>(adapter.rank, kStepDepth);
  args.steps_per_split = args.steps;
  args.epilogue = Epilogue(c, m, n, nullptr);
  const float scale = adapter.scale / product.scale;
  if (qt_status status = packing.add(stream, adapter.up, choice.b_across, n, adapter.rank, scale, &args.b[1])) return status;

  MmaTask& task = inner.task;
  task.a[0] = args.a[0];
  task.k[0] = product.k;
  task.scale = product.scale;
  task.first_steps = task.steps = task.steps_per_split = args.first_steps;
  set_tiles(&task, choice.hopper ? MmaTile::kLarge : MmaTile::kNarrow, m, adapter.rank);
  if (qt_status status = packing.add(stream, adapter.down, choice.b_across, adapter.rank, product.k, 1.0f, &task.b[0]))
    return status;
  task.epilogue = Epilogue(adapter.inner, m, adapter.rank, nullptr);
  const Factor in_place = row_factor(adapter.inner.data, adapter.inner.dtype, adapter.inner.row_stride);
  if (!tiles_read(in_place, false, adapter.rank, 1.0f)) {
    // In bfloat16, with columns of zeros up to a multiple of eight, which tiles beyond the rank are.
    const int64_t stride = round_up(adapter.rank, 8);
    bf16* copy = stream->scratch_of<bf16>(m * stride);
    if (!copy) return stream->out_of_scratch();
    inner.copies = true;
    inner.copy = Epilogue(result_of(copy, QT_BFLOAT16, stride, false), m, stride, nullptr);
    args.a[1] = {copy, stride};
  } else {
    args.a[1] = {static_cast<const bf16*>(adapter.inner.data), adapter.inner.row_stride};
  }
  inner.ready = stream->scratch_of<int32_t>(task.row_tiles + 1);
  if (!inner.ready) return stream->out_of_scratch();
  packing.clear(inner.ready, task.row_tiles + 1);
  if (qt_status status = packing.launch(stream)) return status;
  if (choice.hopper) return gemm_hopper(stream, args, choice.four_bit, choice.a_across, choice.b_across);
  return launch_choice(stream, args, choice, 1);
}

}  // namespace quantune::cuda
