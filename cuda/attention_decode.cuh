// What both forms of attention_decode share: a sequence's tokens, cut into runs of 64, and the partial softmax of each run.
//
// A run is the work of one block of threads for one key head, whatever else is in the batch, and the partials of a sequence are
// merged in the order of its runs: so a sequence has the same result alone and in a batch. Runs that lie behind a sequence's
// length are empty: the grid depends on the tables' shapes alone, and a recorded step stays valid while lengths grow.
#pragma once
#include "device/shared.h"
#include "device/types.h"
#include "device/warp.h"
#include "stream.h"

namespace quantune::cuda::decode {

constexpr int kRun = 64, kThreads = 128;
constexpr int kMostParts = 8;  // of 32 columns: the largest head size

struct Shape {
  int batch, heads, kv_heads, group, size;
  int cache_blocks, block_size, max_blocks, max_steps, slots;
  int prompt_runs, step_runs;
  bool same_steps;  // one count of steps for all sequences
  float scale;      // times log2(e)

  __host__ __device__ int runs() const { return prompt_runs + step_runs; }
};

struct Tables {
  const int32_t *block_table, *lengths, *ancestors, *steps;
  Report bad_length, bad_block, bad_steps, bad_ancestor;
};

// Partial results: for each (sequence, run, head) the highest score (units of log 2), the sum of 2^(s - highest), and the
// values o [D] weighted with 2^(s - highest).
struct Partials {
  float *highest, *total, *o;

  __device__ static int64_t at(const Shape& s, int sequence, int run, int head) {
    return (static_cast<int64_t>(sequence) * s.runs() + run) * s.heads + head;
  }
};

// Keys and values of prompts and of steps, and what the query reads and writes.
template <class T, class C>
struct Operands {
  T* o;
  const T* q;
  const C *k_cache, *v_cache, *k_steps, *v_steps;
};

// One run of one sequence.
struct Run {
  bool prompt;
  int begin, count;  // tokens of its part (prompt or steps); none where it lies behind the end
  int length, most;  // of the part

  __device__ Run(const Shape& s, const Tables& tables, int sequence, int run) {
    prompt = run < s.prompt_runs;
    begin = kRun * (prompt ? run : run - s.prompt_runs);
    length = prompt ? tables.lengths[sequence] : tables.steps[s.same_steps ? 0 : sequence];
    most = prompt ? s.max_blocks * s.block_size : s.max_steps;
    const int left = length <= most ? length - begin : 0;
    count = left < 0 ? 0 : left < kRun ? left : kRun;
  }

  __device__ void check(const Shape& s, const Tables& tables, int sequence) const {
    if (length >= 0 && length <= most) return;
    if (prompt)
      tables.bad_length.raise(sequence, length, most);
    else
      tables.bad_steps.raise(s.same_steps ? 0 : sequence, length, most);
  }

  // The row of the cache (or of the steps) that holds token i of the run; -1 behind its end and where a table is wrong.
  __device__ int row(const Shape& s, const Tables& tables, int sequence, int i) const {
    if (i >= count) return -1;
    const int token = begin + i;
    if (!prompt) {
      const int slot = tables.ancestors[static_cast<int64_t>(sequence) * s.max_steps + token];
      if (slot >= 0 && slot < s.slots) return token * s.slots + slot;
      tables.bad_ancestor.raise(sequence, token, slot);
      return -1;
    }
    const int index = token / s.block_size, block = tables.block_table[static_cast<int64_t>(sequence) * s.max_blocks + index];
    if (block >= 0 && block < s.cache_blocks) return block * s.block_size + token % s.block_size;
    tables.bad_block.raise(sequence, index, block);
    return -1;
  }
};

}  // namespace quantune::cuda::decode
