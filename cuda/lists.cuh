// Kernels over a list of tensors in one launch: the tensors are cut into pieces of equal size, a block takes one piece.
#pragma once
#include <vector>

#include "device/launch.h"
#include "device/types.h"
#include "kernels.h"

namespace quantune::cuda {

// first[i] is the first piece of tensor i, in device memory; first[items] = count.
struct ListPieces {
  const int64_t* first;
  int64_t items, count;
};

struct Piece {
  int64_t item, begin;  // begin: its first element in the tensor
};

__device__ inline Piece find_piece(const ListPieces& pieces, int64_t piece_size) {
  const int64_t piece = blockIdx.x;
  int64_t low = 0, high = pieces.items;  // the last tensor that starts at or before the piece; empty ones start with the next
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (pieces.first[middle] <= piece ? low : high) = middle;
  }
  return {low, (piece - pieces.first[low]) * piece_size};
}

// item(i) says what the kernel needs to know of tensor i; start(pieces, items) launches with both tables in device memory.
template <class Item, class Describe, class Start>
qt_status for_list(qt_stream* stream, const qt_tensor_list* list, int64_t piece_size, const Describe& item,
                   const Start& start) {
  const int64_t count = list->count;
  std::vector<int64_t> first(static_cast<size_t>(count + 1));
  std::vector<Item> items(static_cast<size_t>(count));
  first[0] = 0;
  for (int64_t i = 0; i < count; i++) {
    first[i + 1] = first[i] + ceil_div(list->items[i]->elements, piece_size);
    items[i] = item(i);
  }
  const ListPieces pieces{stream->stage(first.data(), count + 1), count, first[count]};
  if (pieces.count == 0) return start(pieces, static_cast<const Item*>(nullptr));
  const Item* staged = stream->stage(items.data(), count);
  if (!pieces.first || !staged) return stream->out_of_scratch();
  return start(pieces, staged);
}

}  // namespace quantune::cuda
