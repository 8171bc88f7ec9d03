// attention_backward: row sums, then dQ, then dK and dV (attention_backward.cuh).
#include "attention_backward_mma.cuh"
#include "attention_backward_simt.cuh"
#include "kernels.h"

namespace quantune::cuda {
namespace {

template <class T>
qt_status run(qt_stream* stream, const qt_attention_backward_args* a, const AttentionShape& s) {
  const AttentionPlan plan(data_of<int32_t>(a->plan), s.queries, s.keys);
  const BackwardOperands<T> x{data_of<T>(a->dq),        data_of<float>(a->dk),  data_of<float>(a->dv),
                              data_of<const T>(a->d_o), data_of<const T>(a->o), data_of<const T>(a->q),
                              data_of<const T>(a->k),   data_of<const T>(a->v), data_of<const float>(a->lse)};
  RowSums sums{nullptr, nullptr, plan.wide_queries * kWide};
  const int64_t count = static_cast<int64_t>(s.heads) * sums.pitch;
  sums.lse = stream->scratch_of<float>(count);
  sums.delta = stream->scratch_of<float>(count);
  if (count > 0 && (!sums.lse || !sums.delta)) return stream->out_of_scratch();
  auto aligned = [](const qt_tensor* tensor) { return reinterpret_cast<uintptr_t>(tensor->data) % (4 * sizeof(T)) == 0; };
  const bool whole = s.size % 4 == 0 && aligned(a->d_o) && aligned(a->o);
  const qt_status status = launch(whole ? attention_row_sums<T, 4> : attention_row_sums<T, 1>, dim3(sums.pitch / 8, s.heads),
                                  256, 0, stream, sums, x, s, plan, attention_checks(stream, a->rows));
  if (status != QT_OK) return status;
  if constexpr (std::is_same<T, bf16>::value) {
    bool whole = true, served = false;
    for (const qt_tensor* tensor : {a->q, a->k, a->v, a->d_o, a->dq}) whole = whole && mma::copies_whole(tensor);
    const qt_status done = whole ? mma::backward(stream, x, sums, s, plan, static_cast<float>(a->scale), served) : QT_OK;
    if (served) return done;
  }
  return simt::backward(stream, x, sums, s, plan, static_cast<float>(a->scale));
}

}  // namespace

qt_status attention_backward(qt_stream* stream, const qt_attention_backward_args* args) {
  const AttentionShape s = attention_shape(args->q, args->k);
  const qt_status status = check_attention(stream, s, args->plan);
  if (status != QT_OK) return status;
  return with_activation(args->q->dtype, [&](auto zero) { return run<decltype(zero)>(stream, args, s); });
}

}  // namespace quantune::cuda
