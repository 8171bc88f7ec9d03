// Several small products aᵀ b over the same long k in one launch: the gradients of an adapter's two matrices, [k, r] and [n, r]
// over the rows of a batch. Each reads its wide factor once, so memory bounds it (22 µs for 8192 x 4096 at 3 TB/s); alone it
// has too few tiles for the device, and its split sums want a launch more.
#include "gemm_mma.cuh"
#include "gemm_pack.cuh"

namespace quantune::cuda {

namespace {

struct GroupTask {
  MmaTask task;
  int64_t splits, first_block;
};
struct MmaGroup {
  GroupTask tasks[kMostInGroup];
  int32_t count;
};

__device__ inline const GroupTask& task_of(const MmaGroup& group, int64_t block) {
  int at = 0;
  while (at + 1 < group.count && block >= group.tasks[at + 1].first_block) at++;
  return group.tasks[at];
}

__global__ void __launch_bounds__(MmaNarrow::threads) group_kernel(const __grid_constant__ MmaGroup group) {
  const GroupTask& item = task_of(group, blockIdx.x);
  const MmaTask& task = item.task;
  const int64_t at = blockIdx.x - item.first_block, tiles = task.row_tiles * task.column_tiles, split = at / tiles;
  const TileIndex tile(at % tiles, task.row_tiles, task.column_tiles);
  mma_tile<MmaNarrow, true, true, false>(
      task, nullptr, tile, split, [] {},
      [&](int64_t row, int64_t column, const auto& sum) { store_warp<MmaNarrow>(task.epilogue, row, column, split, sum); });
}

constexpr int kFinishThreads = 256;

// splits x 4 bytes read, an element written: bound by memory.
__global__ void __launch_bounds__(kFinishThreads) finish_group_kernel(const __grid_constant__ MmaGroup group) {
  const GroupTask& item = task_of(group, blockIdx.x);
  const Epilogue& e = item.task.epilogue;
  const int64_t i = (blockIdx.x - item.first_block) * kFinishThreads + threadIdx.x, size = e.m * e.n;
  if (i >= size) return;
  float sum = 0.0f;
  for (int64_t s = 0; s < item.splits; s++) sum += e.partial[s * size + i];
  const int64_t row = i / e.n, column = i % e.n, at = row * e.row_stride + column * e.column_stride;
  store_float(e.c, e.dtype, at, e.finished(at, column, sum));
}

bool is_grouped(const GroupedProduct& p) {
  return p.product.a.dtype == QT_BFLOAT16 && is_across(p.product.a) && is_across(p.product.b) && !p.product.b.quant &&
         p.m > 0 && p.n > 0 && p.product.k > 0;
}

qt_status add_task(qt_stream* stream, const GroupedProduct& p, Packing* packing, MmaTask* task) {
  task->scale = p.product.scale;
  task->k[0] = p.product.k;
  task->first_steps = task->steps = ceil_div<int64_t>(p.product.k, kStepDepth);
  task->row_tiles = ceil_div<int64_t>(p.m, MmaNarrow::rows);
  task->column_tiles = ceil_div<int64_t>(p.n, MmaNarrow::columns);
  if (qt_status status = packing->add(stream, p.product.a, true, p.m, p.product.k, 1.0f, &task->a[0])) return status;
  return packing->add(stream, p.product.b, true, p.n, p.product.k, 1.0f, &task->b[0]);
}

qt_status launch_group(qt_stream* stream, MmaGroup* group, const GroupedProduct* products, int64_t tiles) {
  int64_t blocks = 0, finishing = 0;
  MmaGroup split{};
  for (int i = 0; i < group->count; i++) {
    GroupTask& item = group->tasks[i];
    MmaTask& task = item.task;
    task.steps_per_split = ceil_div(task.steps, choose_splits(stream, tiles, task.steps, 4));
    item.splits = ceil_div(task.steps, task.steps_per_split);
    item.first_block = blocks;
    blocks += task.tiles() * item.splits;
    const int64_t m = products[i].m, n = products[i].n;
    float* partial = nullptr;
    if (item.splits > 1 && !(partial = stream->scratch_of<float>(item.splits * m * n))) return stream->out_of_scratch();
    task.epilogue = Epilogue(products[i].c, m, n, partial);
    if (item.splits == 1) continue;
    GroupTask& finish = split.tasks[split.count++];
    finish = item;
    finish.first_block = finishing;
    finishing += ceil_div<int64_t>(m * n, kFinishThreads);
  }
  if (qt_status status = launch(group_kernel, static_cast<unsigned>(blocks), MmaNarrow::threads,
                                shared_bytes<MmaTiles<MmaNarrow, false>>(), stream, *group))
    return status;
  return launch(finish_group_kernel, static_cast<unsigned>(finishing), kFinishThreads, 0, stream, split);
}

}  // namespace

qt_status gemm_group(qt_stream* stream, const GroupedProduct* products, int count) {
  bool grouped = count > 1;
  for (int i = 0; i < count; i++) grouped = grouped && is_grouped(products[i]);
  if (!grouped) {
    for (int i = 0; i < count; i++)
      if (qt_status status = gemm(stream, products[i].m, products[i].n, &products[i].product, 1, products[i].c)) return status;
    return QT_OK;
  }
  MmaGroup group{};
  Packing packing;
  int64_t tiles = 0;
  for (group.count = 0; group.count < count; group.count++) {
    MmaTask* task = &group.tasks[group.count].task;
    if (qt_status status = add_task(stream, products[group.count], &packing, task)) return status;
    tiles += task->tiles();
  }
  if (qt_status status = packing.launch(stream)) return status;
  return launch_group(stream, &group, products, tiles);
}

}  // namespace quantune::cuda
