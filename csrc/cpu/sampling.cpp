// From logits to tokens: log-softmax, the processors of transformers' generate, argmax and sampling. Logits are [B, V] float32.
#include <cmath>

#include "dispatch.h"
#include "philox.h"

namespace quantune::cpu::QT_CPU_VARIANT {
namespace {

constexpr float kInfinity = __builtin_inff();

float row_max(const float* x, int64_t n) {
  Vec lanes = Vec::broadcast(-kInfinity);
  const int64_t whole = n - n % Vec::width;
  for_each_vec(whole, [&](int64_t i, int) { lanes = max(lanes, Vec::load(x + i)); });
  float highest = reduce_max(lanes);
  for (int64_t i = whole; i < n; i++) highest = x[i] > highest ? x[i] : highest;
  return highest;
}

// log Σ e^x, in runs so that float32 sums stay short. A row of nothing but -inf gives -inf.
float log_sum_exp(const float* x, int64_t n, float highest) {
  if (highest == -kInfinity) return highest;
  constexpr int64_t kRun = 1024;
  const Vec top = Vec::broadcast(highest);
  double total = 0;
  for (int64_t start = 0; start < n; start += kRun) {
    Vec lanes = Vec::zero();
    const int64_t end = least(start + kRun, n), whole = end - (end - start) % Vec::width;
    for_vectors(start, whole, [&](int64_t i, int) { lanes = lanes + exp(Vec::load(x + i) - top); });
    total += reduce_add(lanes);
    for (int64_t i = whole; i < end; i++) total += expf(x[i] - highest);
  }
  return highest + static_cast<float>(::log(total));
}

// One call's token history: its processors read history[0 .. length). What is no column of the logits (padding below 0, tokens
// that the head does not have) cannot be generated: it stands in n-grams and changes no logit.
struct History {
  const int32_t* tokens;
  int64_t length, width;

  bool generable(int64_t i) const { return tokens[i] >= 0 && tokens[i] < width; }
};

// Positive logits are divided, negative ones multiplied; reading all before writing any gives each distinct token one penalty.
void penalize_repetition(float* logits, const History& history, float penalty, float* penalized) {
  for (int64_t i = 0; i < history.length; i++) {
    if (!history.generable(i)) continue;
    float logit = logits[history.tokens[i]];
    penalized[i] = logit > 0 ? logit / penalty : logit * penalty;
  }
  for (int64_t i = 0; i < history.length; i++) {
    if (history.generable(i)) logits[history.tokens[i]] = penalized[i];
  }
}

// Bans every token that would complete an n-gram that the history already has.
void ban_repeated_ngrams(float* logits, const History& history, int64_t n) {
  const int32_t* last = history.tokens + history.length - (n - 1);
  for (int64_t i = 0; i + n <= history.length; i++) {
    int64_t same = 0;
    while (same < n - 1 && history.tokens[i + same] == last[same]) same++;
    if (same == n - 1 && history.generable(i + n - 1)) logits[history.tokens[i + n - 1]] = -kInfinity;
  }
}

}  // namespace

qt_status log_softmax(qt_stream* stream, const qt_log_softmax_args* args) {
  const int64_t width = last_of(args->x), rows = width ? args->x->elements / width : 0;
  stream->parallel_for(rows, [&](int64_t row) {
    const float* x = data_of<const float>(args->x) + row * width;
    float* y = data_of<float>(args->y) + row * width;
    const Vec total = Vec::broadcast(log_sum_exp(x, width, row_max(x, width)));
    for_each_vec(width, [&](int64_t i, int n) { store(load(x + i, n) - total, y + i, n); });
  });
  return QT_OK;
}

qt_status logits_process(qt_stream* stream, const qt_logits_process_args* args) {
  const int64_t width = last_of(args->logits), rows = rows_of(args->logits), columns = last_of(args->history);
  const float penalty = static_cast<float>(args->repetition_penalty);
  if (!(penalty > 0)) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "repetition_penalty is %g, expected more than 0",
                              args->repetition_penalty);
  }
  const int32_t* lengths = data_of<const int32_t>(args->lengths);
  for (int64_t row = 0; row < rows; row++) {
    if (lengths[row] < 0 || lengths[row] > columns) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "lengths[%lld] is %d, expected 0 to %lld (the columns of history)",
                                static_cast<long long>(row), lengths[row], static_cast<long long>(columns));
    }
  }
  float* penalized = stream->scratch_of<float>(rows * columns + 1);
  if (!penalized) return out_of_scratch(stream);
  stream->parallel_for(rows, [&](int64_t row) {
    float* logits = data_of<float>(args->logits) + row * width;
    const History history{data_of<const int32_t>(args->history) + row * columns, lengths[row], width};
    if (penalty != 1) penalize_repetition(logits, history, penalty, penalized + row * columns);
    if (args->no_repeat_ngram_size > 0 && history.length >= args->no_repeat_ngram_size) {
      ban_repeated_ngrams(logits, history, args->no_repeat_ngram_size);
    }
  });
  return QT_OK;
}

qt_status suppress_tokens(qt_stream* stream, const qt_suppress_tokens_args* args) {
  const int64_t width = last_of(args->logits), rows = rows_of(args->logits), count = args->ids->elements;
  const int32_t* ids = data_of<const int32_t>(args->ids);
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= width) {
      return stream->host->fail(stream, QT_INVALID_ARGUMENT, "ids[%lld] is %d, expected 0 to %lld", static_cast<long long>(i),
                                ids[i], static_cast<long long>(width - 1));
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t i = 0; i < count; i++) data_of<float>(args->logits)[row * width + ids[i]] = -kInfinity;
  }
  return QT_OK;
}

qt_status argmax(qt_stream* stream, const qt_argmax_args* args) {
  const int64_t width = last_of(args->logits), rows = width ? args->logits->elements / width : 0;
  stream->parallel_for(rows, [&](int64_t row) {
    const float* logits = data_of<const float>(args->logits) + row * width;
    const float highest = row_max(logits, width);
    int64_t best = 0;
    while (best < width && logits[best] != highest) best++;
    if (best == width) best = 0;  // nothing but NaN
    data_of<int32_t>(args->tokens)[row] = static_cast<int32_t>(best);
    if (args->values) data_of<float>(args->values)[row] = logits[best];
  });
  return QT_OK;
}

// ---- sampling --------------------------------------------------------------------------------------------------------
namespace {

struct Candidate {
  float logit;
  int32_t token;
};

// Better: the higher logit, then the lower token.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// A binary heap with the best candidate first: made in linear time, so that the few best of a vocabulary come cheaply.
struct Heap {
  Candidate* items;
  int64_t size;

  void sink(int64_t at) {
    const Candidate moving = items[at];
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
      if (child + 1 < size && better(items[child + 1], items[child])) child++;
      if (!better(items[child], moving)) break;
      items[at] = items[child];
    }
    items[at] = moving;
  }
  void make() {
    for (int64_t i = size / 2; i-- > 0;) sink(i);
  }
  // Moves the best to the place that becomes free at the end of the array.
  Candidate pop() {
    Candidate best = items[0];
    items[0] = items[--size];
    if (size) sink(0);
    items[size] = best;
    return best;
  }
};

// The k best of a row, kept with the worst at the root so that most of a vocabulary fails one comparison.
struct WorstFirst {
  Candidate* items;
  int64_t capacity, size;

  void push(const Candidate& candidate) {
    int64_t at;
    if (size < capacity) {
      at = size++;
      for (; at > 0 && better(items[(at - 1) / 2], candidate); at = (at - 1) / 2) items[at] = items[(at - 1) / 2];
    } else {
      if (!better(candidate, items[0])) return;
      at = 0;
      for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && better(items[child], items[child + 1])) child++;
        if (!better(candidate, items[child])) break;
        items[at] = items[child];
      }
    }
    items[at] = candidate;
  }
  bool admits(float logit) const { return size < capacity ? logit == logit : logit > items[0].logit; }
};

struct Warpers {
  float temperature;
  int64_t top_k;
  double top_p, min_p;
};

// The candidates that temperature, top-k, top-p and min-p (in this order, as transformers' warpers) leave, best first;
// returns how many. Ties with the k-th best stay, as in transformers. The result lies at the end of items[0 .. n).
// `total` is the sum of e^(logit - highest) over what top-k leaves, which top-p is a share of; without top-k it is given.
int64_t best_candidates(Candidate* items, int64_t n, const Warpers& warpers, double total, Candidate** kept) {
  Heap heap{items, n};
  heap.make();
  const double highest = items[0].logit;
  int64_t count = 0;
  if (warpers.top_k > 0) {
    float lowest = 0;
    total = 0;
    while (heap.size > 0 && (count < warpers.top_k || heap.items[0].logit == lowest)) {
      lowest = heap.pop().logit;
      total += ::exp(lowest - highest);
      count++;
    }
  }
  const int64_t limit = warpers.top_k > 0 ? count : n;
  int64_t left = 0;
  double before = 0;
  for (; left < limit; left++) {
    if (left >= n - heap.size) heap.pop();
    const double weight = ::exp(items[n - 1 - left].logit - highest);
    if (left > 0 && warpers.top_p < 1 && before >= warpers.top_p * total) break;
    if (left > 0 && weight < warpers.min_p) break;  // the best candidate's weight is 1
    before += weight;
  }
  *kept = items + n - 1;  // best first means walking down from here
  return left;
}

// Without a filter no order is needed: the first token at which the running sum passes the drawn share of the whole.
int64_t draw_from_all(const float* logits, int64_t n, float temperature, float highest, double uniform, float* weights) {
  constexpr int64_t kRun = 256;
  const Vec top = Vec::broadcast(highest), t = Vec::broadcast(1.0f / temperature);
  double total = 0;
  for_each_vec(n, [&](int64_t i, int count) { store(exp((load(logits + i, count) - top) * t), weights + i, count); });
  auto run_sum = [&](int64_t start) {
    double sum = 0;
    for (int64_t i = start; i < least(start + kRun, n); i++) sum += weights[i];
    return sum;
  };
  for (int64_t start = 0; start < n; start += kRun) total += run_sum(start);
  double target = uniform * total;
  int64_t last = 0;
  for (int64_t start = 0; start < n; start += kRun) {
    const double sum = run_sum(start);
    if (target >= sum) {
      target -= sum;
      continue;
    }
    for (int64_t i = start; i < least(start + kRun, n); i++) {
      if (weights[i] > 0) last = i;
      if (target < weights[i]) return i;
      target -= weights[i];
    }
    return last;
  }
  for (int64_t i = n; i-- > 0;) {  // rounding left a crumb: the last token that can be drawn
    if (weights[i] > 0) return i;
  }
  return 0;
}

// Calls `put` with the candidates of logits[0 .. n) / temperature that `admits` lets in; most blocks cost one comparison.
template <class Admits, class Put>
void scan(const float* logits, int64_t n, float temperature, Admits admits, Put put) {
  for (int64_t start = 0; start < n; start += 64) {
    const int64_t end = least(start + 64, n);
    if (!admits(row_max(logits + start, end - start) / temperature)) continue;
    for (int64_t i = start; i < end; i++) {
      const float logit = logits[i] / temperature;
      if (admits(logit)) put({logit, static_cast<int32_t>(i)});
    }
  }
}

// The sum of the weights that are at least `lowest`, in runs so that float32 sums stay short.
double mass_from(const float* weights, int64_t n, float lowest) {
  constexpr int64_t kRun = 1024;
  const Vec bound = Vec::broadcast(lowest);
  double mass = 0;
  for (int64_t start = 0; start < n; start += kRun) {
    Vec lanes = Vec::zero();
    const int64_t end = least(start + kRun, n), whole = end - (end - start) % Vec::width;
    for_vectors(start, whole, [&](int64_t i, int) {
      const Vec weight = Vec::load(weights + i);
      lanes = lanes + select_less(weight, bound, Vec::zero(), weight);
    });
    mass += reduce_add(lanes);
    for (int64_t i = whole; i < end; i++) mass += weights[i] < lowest ? 0 : weights[i];
  }
  return mass;
}

// A weight below which top-p and min-p leave nothing, 0 where that can't be told: most of a vocabulary is then never ordered.
// The margin is far above what rounds in the float32 weights.
float least_weight(const float* weights, int64_t n, double total, const Warpers& warpers) {
  constexpr double kMargin = 1e-5;
  const float lowest = static_cast<float>(warpers.min_p * (1 - kMargin));
  if (warpers.top_p == 1) return lowest;
  for (float cut = 0.25f; cut > 1e-10f && cut > lowest; cut *= 0.25f) {
    if (mass_from(weights, n, cut) >= warpers.top_p * total * (1 + kMargin)) return cut;
  }
  return lowest;
}

// The candidates that top-p and min-p may leave without top-k; `weights` becomes e^(logit - highest), `total` their sum.
int64_t list_likely(const float* logits, int64_t n, const Warpers& warpers, float* weights, double* total, Candidate* items) {
  const float highest = row_max(logits, n) / warpers.temperature;
  const Vec t = Vec::broadcast(warpers.temperature), top = Vec::broadcast(highest);
  for_each_vec(n, [&](int64_t i, int count) { store(exp(load(logits + i, count) / t - top), weights + i, count); });
  *total = mass_from(weights, n, 0);
  const float lowest = least_weight(weights, n, *total, warpers);
  int64_t count = 0;
  for (int64_t start = 0; start < n; start += 64) {
    const int64_t end = least(start + 64, n);
    if (row_max(weights + start, end - start) < lowest) continue;
    for (int64_t i = start; i < end; i++) {
      if (weights[i] >= lowest) items[count++] = {logits[i] / warpers.temperature, static_cast<int32_t>(i)};
    }
  }
  // Where even the best is no number, there is nothing to choose by.
  for (; count == 0 || (count < n && items[0].logit != items[0].logit); count++) {
    items[count] = {logits[count] / warpers.temperature, static_cast<int32_t>(count)};
  }
  return count;
}

// The candidates that may be among the k best, ties with the last of these included; all where there are fewer than k numbers.
int64_t list_best(const float* logits, int64_t n, const Warpers& warpers, Candidate* items) {
  int64_t count = 0;
  if (warpers.top_k > 0 && warpers.top_k < n) {
    WorstFirst best{items, warpers.top_k, 0};
    scan(
        logits, n, warpers.temperature, [&](float x) { return best.admits(x); }, [&](Candidate c) { best.push(c); });
    const float lowest = items[0].logit;
    if (best.size == warpers.top_k) {
      scan(
          logits, n, warpers.temperature, [&](float x) { return x >= lowest; }, [&](Candidate c) { items[count++] = c; });
      return count;
    }
  }
  for (; count < n; count++) items[count] = {logits[count] / warpers.temperature, static_cast<int32_t>(count)};
  return count;
}

int64_t draw_from_best(const float* logits, int64_t n, const Warpers& warpers, double uniform, Candidate* items,
                       float* weights) {
  Candidate* best;
  double all = 0;
  const int64_t listed =
      warpers.top_k > 0 ? list_best(logits, n, warpers, items) : list_likely(logits, n, warpers, weights, &all, items);
  const int64_t count = best_candidates(items, listed, warpers, all, &best);
  double total = 0;
  for (int64_t i = 0; i < count; i++) total += ::exp(static_cast<double>(best[-i].logit) - best[0].logit);
  double target = uniform * total;
  for (int64_t i = 0; i < count; i++) {
    const double weight = ::exp(static_cast<double>(best[-i].logit) - best[0].logit);
    if (target < weight) return best[-i].token;
    target -= weight;
  }
  return best[0].token;
}

}  // namespace

// Each row draws with its own Philox number, so that a sequence samples the same tokens alone and in a batch.
qt_status sample(qt_stream* stream, const qt_sample_args* args) {
  const int64_t width = last_of(args->logits), rows = width ? args->logits->elements / width : 0;
  const Warpers warpers{static_cast<float>(args->temperature), args->top_k, args->top_p, args->min_p};
  if (!(args->temperature > 0)) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "temperature is %g, expected more than 0", args->temperature);
  }
  if (args->top_k < 0 || !(args->top_p > 0 && args->top_p <= 1) || !(args->min_p >= 0 && args->min_p <= 1)) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT,
                              "expected top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1; got %lld, %g, %g",
                              static_cast<long long>(args->top_k), args->top_p, args->min_p);
  }
  const bool filtered = (args->top_k > 0 && args->top_k < width) || args->top_p < 1 || args->min_p > 0;
  Candidate* items = filtered ? stream->scratch_of<Candidate>(rows * width) : nullptr;
  float* weights = stream->scratch_of<float>(rows * width);
  if (rows && (!weights || (filtered && !items))) return out_of_scratch(stream);
  const uint32_t* rng = data_of<const uint32_t>(args->rng);
  stream->parallel_for(rows, [&](int64_t row) {
    const float* logits = data_of<const float>(args->logits) + row * width;
    const float highest = row_max(logits, width);
    const PhiloxNumbers numbers({rng[2 * row], 0}, rng[2 * row + 1], 0x73616d70u, 0, 0);  // "samp": apart from all other draws
    const double uniform =
        (static_cast<double>(numbers.word[0] >> 5) * 67108864.0 + (numbers.word[1] >> 6)) / 9007199254740992.0;
    float* own = weights + row * width;
    int64_t token = filtered ? draw_from_best(logits, width, warpers, uniform, items + row * width, own)
                             : draw_from_all(logits, width, warpers.temperature, highest, uniform, own);
    data_of<int32_t>(args->tokens)[row] = static_cast<int32_t>(token);
    if (args->log_probs) data_of<float>(args->log_probs)[row] = logits[token] - log_sum_exp(logits, width, highest);
  });
  return QT_OK;
}

// ---- beams -----------------------------------------------------------------------------------------------------------

qt_status beam_topk(qt_stream* stream, const qt_beam_topk_args* args) {
  const int64_t width = last_of(args->log_probs), rows = rows_of(args->log_probs);
  const int64_t prompts = rows_of(args->scores), k = last_of(args->scores), beams = prompts ? rows / prompts : 0;
  if (k > beams * width) {
    return stream->host->fail(stream, QT_INVALID_ARGUMENT, "the %lld best of %lld candidates were asked for",
                              static_cast<long long>(k), static_cast<long long>(beams * width));
  }
  // Candidates carry beam * width + token as their token, which must fit.
  if (beams * width > INT32_MAX) return stream->host->fail(stream, QT_INVALID_ARGUMENT, "too many beams for the vocabulary");
  if (k == 0) return QT_OK;
  Candidate* scratch = stream->scratch_of<Candidate>((rows + prompts) * k + 1);
  int64_t* sizes = stream->scratch_of<int64_t>(rows + 1);
  if (!scratch || !sizes) return out_of_scratch(stream);
  stream->parallel_for(rows, [&](int64_t row) {
    const float* log_probs = data_of<const float>(args->log_probs) + row * width;
    const float base = data_of<const float>(args->beam_scores)[row];
    const int32_t first = static_cast<int32_t>(row % beams * width);
    WorstFirst best{scratch + row * k, k, 0};
    for (int64_t start = 0; start < width; start += 64) {
      const int64_t end = least(start + 64, width);
      if (best.size == k && !best.admits(base + row_max(log_probs + start, end - start))) continue;
      for (int64_t v = start; v < end; v++) {
        const float score = log_probs[v] + base;
        if (best.admits(score)) best.push({score, first + static_cast<int32_t>(v)});
      }
    }
    sizes[row] = best.size;
  });
  for (int64_t p = 0; p < prompts; p++) {
    WorstFirst best{scratch + (rows + p) * k, k, 0};
    for (int64_t row = p * beams; row < (p + 1) * beams; row++) {
      for (int64_t i = 0; i < sizes[row]; i++) best.push(scratch[row * k + i]);
    }
    Heap order{best.items, best.size};
    order.make();
    for (int64_t i = 0; i < k; i++) {
      // Fewer candidates than k are left only when the others are NaN.
      const Candidate next = order.size ? order.pop() : Candidate{-kInfinity, 0};
      data_of<float>(args->scores)[p * k + i] = next.logit;
      data_of<int32_t>(args->beams)[p * k + i] = static_cast<int32_t>(next.token / width);
      data_of<int32_t>(args->tokens)[p * k + i] = static_cast<int32_t>(next.token % width);
    }
  }
  return QT_OK;
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
