// Weights of LLM.int8 as bitsandbytes makes them: an output's largest magnitude (absmax, there SCB) and codes of one byte,
// round(127 w / absmax).
#include <cmath>
#include <type_traits>

#include "int8.h"

namespace quantune::cpu::QT_CPU_VARIANT {

namespace {

// Outputs of a task: neighbours in memory of a transposed weight.
constexpr int64_t outputs_per_task = 16;

struct MutableInt8 {
  int8_t* codes;
  float* absmax;
  explicit MutableInt8(const qt_tensor* t) {
    uint8_t* base = static_cast<uint8_t*>(t->data);
    codes = reinterpret_cast<int8_t*>(base + t->quant->codes);
    absmax = reinterpret_cast<float*>(base + t->quant->absmax);
  }
};

// body(output, first element, step from input to input) for every output, in parallel.
template <class Body>
void for_outputs(qt_stream* stream, const qt_quant& layout, const Body& body) {
  const int64_t outputs = layout.blocks, inputs = layout.block_size;
  stream->parallel_for((outputs + outputs_per_task - 1) / outputs_per_task, [&](int64_t task) {
    for (int64_t i = task * outputs_per_task; i < outputs && i < (task + 1) * outputs_per_task; i++)
      body(i, layout.transposed ? i : i * inputs, layout.transposed ? outputs : 1);
  });
}

}  // namespace

qt_status int8_quantize(qt_stream* stream, const qt_quantize_args* args) {
  const qt_quant& layout = *args->q->quant;
  const MutableInt8 q(args->q);
  const int64_t inputs = layout.block_size;
  with_storage(args->w->dtype, [&](auto type) {
    const auto* w = static_cast<decltype(type)>(args->w->data);
    for_outputs(stream, layout, [&](int64_t output, int64_t first, int64_t step) {
      float most = 0.0f;
      for (int64_t i = 0; i < inputs; i++) {
        const float x = to_float(w[first + i * step]), a = x < 0.0f ? -x : x;
        most = a > most ? a : most;
      }
      q.absmax[output] = most;
      const float to_codes = codes_per_unit(most);
      int8_t* codes = q.codes + output * layout.row_bytes;
      for (int64_t i = 0; i < inputs; i++) {
        const float code = to_float(w[first + i * step]) * to_codes;
        codes[i] = code == code ? static_cast<int8_t>(std::nearbyint(code)) : int8_t{0};  // no code is NaN
      }
      std::memset(codes + inputs, 0, static_cast<size_t>(layout.row_bytes - inputs));
    });
  });
  return QT_OK;
}

qt_status int8_dequantize(qt_stream* stream, const qt_dequantize_args* args) {
  const qt_quant& layout = *args->q->quant;
  const Int8 q(args->q->data, args->q->quant);
  with_storage(args->w->dtype, [&](auto type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    T* w = static_cast<T*>(args->w->data);
    for_outputs(stream, layout, [&](int64_t output, int64_t first, int64_t step) {
      const int8_t* codes = q.codes + output * layout.row_bytes;
      const float scale = q.scale(output);
      for (int64_t i = 0; i < layout.block_size; i++) w[first + i * step] = from_float<T>(to_float(codes[i]) * scale);
    });
  });
  return QT_OK;
}

void int8_load(const qt_quantized_load_args* args) {
  const qt_quant& layout = *args->q->quant;
  const MutableInt8 q(args->q);
  const size_t inputs = static_cast<size_t>(layout.block_size), row_bytes = static_cast<size_t>(layout.row_bytes);
  const int8_t* from = static_cast<const int8_t*>(args->codes->data);
  for (size_t i = 0; i < static_cast<size_t>(layout.blocks); i++) {
    std::memcpy(q.codes + i * row_bytes, from + i * inputs, inputs);
    std::memset(q.codes + i * row_bytes + inputs, 0, row_bytes - inputs);
  }
  std::memcpy(q.absmax, args->absmax->data, static_cast<size_t>(layout.blocks) * 4);
}

void int8_export(const qt_quantized_export_args* args) {
  const qt_quant& layout = *args->q->quant;
  const MutableInt8 q(args->q);
  const size_t inputs = static_cast<size_t>(layout.block_size), row_bytes = static_cast<size_t>(layout.row_bytes);
  int8_t* to = static_cast<int8_t*>(args->codes->data);
  for (size_t i = 0; i < static_cast<size_t>(layout.blocks); i++) std::memcpy(to + i * inputs, q.codes + i * row_bytes, inputs);
  std::memcpy(args->absmax->data, q.absmax, static_cast<size_t>(layout.blocks) * 4);
}

}  // namespace quantune::cpu::QT_CPU_VARIANT
