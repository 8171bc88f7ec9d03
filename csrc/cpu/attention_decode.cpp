// Attention of one query a sequence over a paged cache and beam slots, and writing into the cache.
//
// A sequence's keys are the tokens of its prompt (through its block table), then those generated since (step s lies in the slot
// ancestors[b, s] of k_steps). Each part is cut into runs of kRun tokens; a task takes one run, serves all heads and leaves a
// partial softmax of each; the partials of a head are then merged in the order of the runs. So a long prompt keeps all threads
// busy. Neighbouring sequences whose block tables agree on a run (beams, samples of one prompt) share its task: keys and values
// are read once for all of them, and with enough rows the products run in register tiles, a task for each key head.
#include <cmath>

#include "attention_tiles.h"
#include "simd/reduce.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr int64_t kRun = 64;    // tokens a task
constexpr int64_t kChunk = 32;  // tokens whose scores are held at once

// From this many rows on (sequences times heads) transposing the keys pays; tasks are cut at the upper bound.
constexpr int64_t kFewestTileRows = 8, kMostTileRows = 96;

struct Shape {
  int64_t batch, heads, kv_heads, size, padded, group, block_size, max_blocks, max_steps, slots;
  const int32_t* steps;  // [B], or [1] for all
  bool same_steps;

  int64_t steps_of(int64_t b) const { return steps[same_steps ? 0 : b]; }
};

// The run `index` of `sequences` neighbours: tokens [begin, end) of their common prompt, or of what one of them generated.
struct Run {
  int64_t first, sequences, index, begin, end;
  bool prompt;
};

// The partial result of one query head over one run, as it lies in scratch memory before its D values o = Σ e^(s - highest) v.
struct Partial {
  float highest, total;

  float* o() { return reinterpret_cast<float*>(this + 1); }
};

// The partials of all runs: [runs of all sequences, H], those of sequence b from first[b] on.
struct Partials {
  float* memory;
  int64_t* first;

  static int64_t floats(const Shape& s) { return s.size + 2; }
  Partial* at(const Shape& s, int64_t sequence, int64_t index, int64_t head) const {
    return reinterpret_cast<Partial*>(memory + ((first[sequence] + index) * s.heads + head) * floats(s));
  }
};

qt_status check_tables(qt_stream* stream, const qt_attention_decode_args* a, const Shape& s) {
  const int32_t *lengths = data_of<const int32_t>(a->lengths), *table = data_of<const int32_t>(a->block_table);
  const int32_t* ancestors = data_of<const int32_t>(a->ancestors);
  for (int64_t b = 0; b < s.batch; b++) {
    if (s.steps_of(b) < 0 || s.steps_of(b) > s.max_steps) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "steps[%lld] is %lld, expected 0 to %lld (the steps of k_steps)",
                                static_cast<long long>(s.same_steps ? 0 : b), static_cast<long long>(s.steps_of(b)),
                                static_cast<long long>(s.max_steps));
    }
    if (lengths[b] < 0 || lengths[b] > s.max_blocks * s.block_size) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT,
                                "lengths[%lld] is %d, expected 0 to %lld (the block table's tokens)", static_cast<long long>(b),
                                lengths[b], static_cast<long long>(s.max_blocks * s.block_size));
    }
    for (int64_t i = 0; i < ceil_div(lengths[b], s.block_size); i++) {
      const int32_t block = table[b * s.max_blocks + i];
      if (block < 0 || block >= rows_of(a->k_cache)) {
        return stream->host->fail(stream, QT_INVALID_ARGUMENT, "block_table[%lld, %lld] is %d, expected 0 to %lld",
                                  static_cast<long long>(b), static_cast<long long>(i), block,
                                  static_cast<long long>(rows_of(a->k_cache) - 1));
      }
    }
    for (int64_t i = 0; i < s.steps_of(b); i++) {
      const int32_t slot = ancestors[b * s.max_steps + i];
      if (slot < 0 || slot >= s.slots) {
        return stream->host->fail(stream, QT_INVALID_ARGUMENT, "ancestors[%lld, %lld] is %d, expected 0 to %lld",
                                  static_cast<long long>(b), static_cast<long long>(i), slot,
                                  static_cast<long long>(s.slots - 1));
      }
    }
  }
  return QT_OK;
}

// Where a run's keys and values of the tokens [from, from + count) lie.
template <class C>
void token_rows(const qt_attention_decode_args* a, const Shape& s, const Run& run, int64_t from, int64_t count, int64_t head,
                const C** k, const C** v) {
  const int32_t* table = data_of<const int32_t>(a->block_table) + run.first * s.max_blocks;
  const int32_t* ancestors = data_of<const int32_t>(a->ancestors) + run.first * s.max_steps;
  for (int64_t i = 0; i < count; i++) {
    const int64_t t = from + i;
    const int64_t row = run.prompt ? table[t / s.block_size] * s.block_size + t % s.block_size : t * s.slots + ancestors[t];
    const int64_t at = (row * s.kv_heads + head) * s.size;
    k[i] = data_of<const C>(run.prompt ? a->k_cache : a->k_steps) + at;
    v[i] = data_of<const C>(run.prompt ? a->v_cache : a->v_steps) + at;
  }
}

// scores[i] = q · k[i], four keys at a time.
template <class C>
void dot_keys(const float* q, const C* const* k, int64_t count, int64_t size, float* scores) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    Vec sum[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    const C *k0 = k[i], *k1 = k[i + 1], *k2 = k[i + 2], *k3 = k[i + 3];
    for_each_vec(size, [&](int64_t d, int n) {
      const Vec x = load(q + d, n);
      sum[0] = fma(x, load(k0 + d, n), sum[0]);
      sum[1] = fma(x, load(k1 + d, n), sum[1]);
      sum[2] = fma(x, load(k2 + d, n), sum[2]);
      sum[3] = fma(x, load(k3 + d, n), sum[3]);
    });
    reduce_add(sum, scores + i);
  }
  for (; i < count; i++) {
    Vec sum = Vec::zero();
    for_each_vec(size, [&](int64_t d, int n) { sum = fma(load(q + d, n), load(k[i] + d, n), sum); });
    scores[i] = reduce_add(sum);
  }
}

// o = o * decay + Σ p[i] v[i].
template <class C>
void add_values(float* o, float decay, const float* p, const C* const* v, int64_t count, int64_t size) {
  int64_t d = 0;
  for (; d + 4 * Vec::width <= size; d += 4 * Vec::width) {
    constexpr int w = Vec::width;
    const Vec f = Vec::broadcast(decay);
    Vec o0 = Vec::load(o + d) * f, o1 = Vec::load(o + d + w) * f, o2 = Vec::load(o + d + 2 * w) * f,
        o3 = Vec::load(o + d + 3 * w) * f;
    for (int64_t i = 0; i < count; i++) {
      const Vec x = Vec::broadcast(p[i]);
      const C* from = v[i] + d;
      o0 = fma(x, Vec::load(from), o0);
      o1 = fma(x, Vec::load(from + w), o1);
      o2 = fma(x, Vec::load(from + 2 * w), o2);
      o3 = fma(x, Vec::load(from + 3 * w), o3);
    }
    o0.store(o + d);
    o1.store(o + d + w);
    o2.store(o + d + 2 * w);
    o3.store(o + d + 3 * w);
  }
  for_vectors(d, size, [&](int64_t at, int n) {
    Vec sum = load(o + at, n) * Vec::broadcast(decay);
    for (int64_t i = 0; i < count; i++) sum = fma(Vec::broadcast(p[i]), load(v[i] + at, n), sum);
    store(sum, o + at, n);
  });
}

// Scores become e^(s - highest) in place, in whole vectors; returns the factor for what was summed before.
float soften(float* scores, int64_t count, Partial& state, float scale) {
  constexpr float lowest = -__builtin_inff();
  for (int64_t i = count; i < round_up(count, Vec::width); i++) scores[i] = lowest;
  Vec best = Vec::broadcast(state.highest);
  for (int64_t i = 0; i < count; i += Vec::width) {
    const int n = static_cast<int>(least(Vec::width, count - i));
    const Vec x = load(scores + i, n) * Vec::broadcast(scale);
    store(x, scores + i, n);
    best = max(best, Vec::load(scores + i));
  }
  const float highest = reduce_max(best), decay = state.highest == lowest ? 0.0f : expf(state.highest - highest);
  Vec total = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::width) {
    const Vec p = exp(Vec::load(scores + i) - Vec::broadcast(highest));
    p.store(scores + i);
    total = total + p;
  }
  state.total = state.total * decay + reduce_add(total);
  state.highest = highest;
  return decay;
}

// A run of one sequence, in chunks. All heads of a chunk follow one another, so that the rows of keys and values, which hold
// all heads, are read from the first to the last, as the hardware foresees, and each once.
template <class T, class C>
void run_rows(const qt_attention_decode_args* a, const Shape& s, const Run& run, float* q, const Partials& partials) {
  const T* from = data_of<const T>(a->q) + run.first * s.heads * s.size;
  for_each_vec(s.heads * s.size, [&](int64_t i, int n) { store(load(from + i, n), q + i, n); });
  auto partial = [&](int64_t h) { return partials.at(s, run.first, run.index, h); };
  for (int64_t h = 0; h < s.heads; h++) {
    *partial(h) = {-__builtin_inff(), 0};
    std::memset(partial(h)->o(), 0, s.size * sizeof(float));
  }
  const C *k[kChunk], *v[kChunk];
  float scores[kChunk];
  for (int64_t t = run.begin; t < run.end; t += kChunk) {
    const int64_t count = least(kChunk, run.end - t);
    for (int64_t h = 0; h < s.heads; h++) {
      if (h % s.group == 0) token_rows<C>(a, s, run, t, count, h / s.group, k, v);
      dot_keys(q + h * s.size, k, count, s.size, scores);
      const float decay = soften(scores, count, *partial(h), static_cast<float>(a->scale));
      add_values(partial(h)->o(), decay, scores, v, count, s.size);
    }
  }
}

// A run that several sequences share, as products of register tiles: row = sequence * group + head.
struct SharedRun {
  float *q, *o, *k, *v, *scores, *decay;
  Partial* states;

  static int64_t bytes(const Shape& s) {
    return 2 * Workspace::need(kMostTileRows * s.padded) + Workspace::need(s.size * kKeyBlock) +
           Workspace::need(kKeyBlock * s.padded) + Workspace::need(kMostTileRows * kKeyBlock) +
           3 * Workspace::need(kMostTileRows);
  }
  SharedRun(const Shape& s, Workspace space) {
    q = space.take(kMostTileRows * s.padded);
    o = space.take(kMostTileRows * s.padded);
    k = space.take(s.size * kKeyBlock);
    v = space.take(kKeyBlock * s.padded);
    scores = space.take(kMostTileRows * kKeyBlock);
    decay = space.take(kMostTileRows);
    states = reinterpret_cast<Partial*>(space.take(2 * kMostTileRows));
  }

  template <class T, class C>
  void compute(const qt_attention_decode_args* a, const Shape& s, const Run& run, int64_t kv_head, const Partials& partials) {
    const int64_t rows = run.sequences * s.group;
    for (int64_t r = 0; r < rows; r++) {
      const T* from = data_of<const T>(a->q) + ((run.first + r / s.group) * s.heads + kv_head * s.group + r % s.group) * s.size;
      for_each_vec(s.size, [&](int64_t d, int n) { load(from + d, n).store(q + r * s.padded + d); });
      states[r] = {-__builtin_inff(), 0};
    }
    std::memset(o, 0, rows * s.padded * sizeof(float));
    const C *k_rows[kKeyBlock], *v_rows[kKeyBlock];
    for (int64_t t = run.begin; t < run.end; t += kKeyBlock) {
      const int64_t count = least(kKeyBlock, run.end - t), columns = round_up(count, Vec::width);
      token_rows<C>(a, s, run, t, count, kv_head, k_rows, v_rows);
      transpose_keys([&](int64_t j) { return k_rows[j]; }, count, s.size, columns, k);
      for (int64_t j = 0; j < columns; j++) {
        for_each_vec(s.size,
                     [&](int64_t d, int n) { (j < count ? load(v_rows[j] + d, n) : Vec::zero()).store(v + j * s.padded + d); });
      }
      multiply<Into::kOverwrite, false>(q, s.padded, k, kKeyBlock, rows, columns, s.size, scores, kKeyBlock);
      for (int64_t r = 0; r < rows; r++) {
        decay[r] = soften(scores + r * kKeyBlock, count, states[r], static_cast<float>(a->scale));
      }
      multiply<Into::kDecay, false>(scores, kKeyBlock, v, s.padded, rows, s.padded, columns, o, s.padded, decay);
    }
    for (int64_t r = 0; r < rows; r++) {
      Partial* partial = partials.at(s, run.first + r / s.group, run.index, kv_head * s.group + r % s.group);
      *partial = states[r];
      std::memcpy(partial->o(), o + r * s.padded, s.size * sizeof(float));
    }
  }
};

// Whether sequence b and the one before it have the same tokens in the run [begin, end) of their prompts.
bool shares(const qt_attention_decode_args* a, const Shape& s, int64_t b, int64_t begin, int64_t end) {
  const int32_t *lengths = data_of<const int32_t>(a->lengths), *table = data_of<const int32_t>(a->block_table);
  if (b == 0 || least(begin + kRun, lengths[b - 1]) != end) return false;
  for (int64_t i = begin / s.block_size; i * s.block_size < end; i++) {
    if (table[b * s.max_blocks + i] != table[(b - 1) * s.max_blocks + i]) return false;
  }
  return true;
}

// Lists the runs of all sequences; returns how many tasks they make. task_of has a place for each sequence's run.
int64_t list_runs(const qt_attention_decode_args* a, const Shape& s, const Partials& partials, Run* list, int64_t* task_of) {
  const int32_t* lengths = data_of<const int32_t>(a->lengths);
  int64_t tasks = 0;
  for (int64_t b = 0; b < s.batch; b++) {
    int64_t index = 0;
    for (int64_t begin = 0; begin < lengths[b]; begin += kRun, index++) {
      const int64_t end = least(begin + kRun, lengths[b]);
      int64_t task = shares(a, s, b, begin, end) ? task_of[partials.first[b - 1] + index] : -1;
      if (task >= 0 && (list[task].sequences + 1) * s.group <= kMostTileRows)
        list[task].sequences++;
      else
        list[task = tasks++] = {b, 1, index, begin, end, true};
      task_of[partials.first[b] + index] = task;
    }
    for (int64_t begin = 0; begin < s.steps_of(b); begin += kRun, index++) {
      list[tasks++] = {b, 1, index, begin, least(begin + kRun, s.steps_of(b)), false};
    }
  }
  return tasks;
}

// Merges the partials of one head; the runs lie `stride` partials apart.
template <class T>
void merge(T* o, const float* partials, int64_t runs, int64_t stride, int64_t size) {
  float highest = -__builtin_inff(), total = 0;
  for (int64_t r = 0; r < runs; r++) highest = partials[r * stride] > highest ? partials[r * stride] : highest;
  for (int64_t r = 0; r < runs; r++) {
    if (partials[r * stride] > -__builtin_inff()) total += partials[r * stride + 1] * expf(partials[r * stride] - highest);
  }
  const float inverse = total > 0 ? 1 / total : 0;
  for_each_vec(size, [&](int64_t d, int n) {
    Vec sum = Vec::zero();
    for (int64_t r = 0; r < runs; r++) {
      const float* part = partials + r * stride;
      if (part[0] > -__builtin_inff()) {
        sum = fma(load(part + 2 + d, n), Vec::broadcast(expf(part[0] - highest) * inverse), sum);
      }
    }
    store(sum, o + d, n);
  });
}

template <class T, class C>
qt_status decode(qt_stream* stream, const qt_attention_decode_args* a, const Shape& s) {
  const int32_t* lengths = data_of<const int32_t>(a->lengths);
  int64_t* first = stream->scratch_of<int64_t>(s.batch + 1);
  if (!first) return out_of_scratch(stream);
  first[0] = 0;
  for (int64_t b = 0; b < s.batch; b++) first[b + 1] = first[b] + ceil_div(lengths[b], kRun) + ceil_div(s.steps_of(b), kRun);
  const int64_t runs = first[s.batch], bytes = SharedRun::bytes(s) + Workspace::need(s.heads * s.size);
  const Partials partials{stream->scratch_of<float>(runs * s.heads * Partials::floats(s)), first};
  Run* list = stream->scratch_of<Run>(runs);
  int64_t* task_of = stream->scratch_of<int64_t>(runs);
  char* space = static_cast<char*>(stream->scratch(stream->workers() * bytes));
  if (!partials.memory || !list || !task_of || !space) return out_of_scratch(stream);
  const int64_t tasks = list_runs(a, s, partials, list, task_of);
  stream->parallel_for_worker(tasks * s.kv_heads, [&](int64_t task, int worker) {
    const Run& run = list[task / s.kv_heads];
    const int64_t kv_head = task % s.kv_heads;
    Workspace workspace{space + worker * bytes, bytes, 0};
    if (run.sequences > 1 && run.sequences * s.group >= kFewestTileRows) {
      SharedRun(s, workspace).compute<T, C>(a, s, run, kv_head, partials);
      return;
    }
    if (kv_head > 0) return;  // the first head's task serves all
    float* q = workspace.take(s.heads * s.size);
    for (int64_t i = 0; i < run.sequences; i++) {
      run_rows<T, C>(a, s, {run.first + i, 1, run.index, run.begin, run.end, run.prompt}, q, partials);
    }
  });
  for_chunks(stream, s.batch * s.heads, 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / s.heads, stride = s.heads * Partials::floats(s);
      merge(data_of<T>(a->o) + i * s.size, &partials.at(s, b, 0, i % s.heads)->highest, first[b + 1] - first[b], stride,
            s.size);
    }
  });
  return QT_OK;
}

}  // namespace

qt_status attention_decode(qt_stream* stream, const qt_attention_decode_args* a) {
  const int64_t heads = a->q->shape[1], kv_heads = a->k_cache->shape[2];
  const Shape s{a->q->shape[0],
                heads,
                kv_heads,
                a->q->shape[2],
                round_up(a->q->shape[2], Vec::width),
                heads / kv_heads,
                a->k_cache->shape[1],
                last_of(a->block_table),
                last_of(a->ancestors),
                a->k_steps->shape[1],
                data_of<const int32_t>(a->steps),
                a->steps->elements == 1};
  qt_status status = check_tables(stream, a, s);
  if (status != QT_OK) return status;
  return with_activation(stream, a->q->dtype, [&](auto q_type) {
    return with_activation(stream, a->k_cache->dtype,
                           [&](auto cache_type) { return decode<decltype(q_type), decltype(cache_type)>(stream, a, s); });
  });
}

qt_status kv_write(qt_stream* stream, const qt_kv_write_args* args) {
  const int64_t tokens = args->slots->elements, slots = args->k_cache->shape[0] * args->k_cache->shape[1];
  const int64_t width = args->k_cache->shape[2] * args->k_cache->shape[3];
  const int32_t* slot = data_of<const int32_t>(args->slots);
  for (int64_t t = 0; t < tokens; t++) {
    if (slot[t] < -1 || slot[t] >= slots) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "slots[%lld] is %d, expected -1 to %lld",
                                static_cast<long long>(t), slot[t], static_cast<long long>(slots - 1));
    }
  }
  return with_activation(stream, args->k_cache->dtype, [&](auto cache_type) {
    return with_activation(stream, args->k->dtype, [&](auto type) {
      using C = decltype(cache_type);
      using T = decltype(type);
      for_chunks(stream, tokens, rows_per_task(2 * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++) {
          if (slot[t] < 0) continue;
          C *to_k = data_of<C>(args->k_cache) + slot[t] * width, *to_v = data_of<C>(args->v_cache) + slot[t] * width;
          const T *k = data_of<const T>(args->k) + t * width, *v = data_of<const T>(args->v) + t * width;
          for_each_vec(width, [&](int64_t i, int n) {
            store(load(k + i, n), to_k + i, n);
            store(load(v + i, n), to_v + i, n);
          });
        }
      });
      return QT_OK;
    });
  });
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
