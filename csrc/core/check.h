// The words that the checks of operations are written in.
#pragma once
#include <initializer_list>
#include <string>

#include "abi.h"

namespace quantune {

// Sets of dtypes.
enum : uint32_t {
  kIsFloat32 = 1u << QT_FLOAT32,
  kIsInt32 = 1u << QT_INT32,
  kIsInt8 = 1u << QT_INT8,
  kIsUint8 = 1u << QT_UINT8,
  kIsActivation = kIsFloat32 | 1u << QT_BFLOAT16,
  kIsFloat = kIsActivation | 1u << QT_FLOAT16,
  kIsFourBit = 1u << QT_NF4 | 1u << QT_FP4,
  kIsQuantized = kIsFourBit | 1u << QT_LLM_INT8,
  kIsPlain = kIsFloat | kIsInt32 | kIsInt8 | kIsUint8,
};

// An operand with its name. `tensor` is null where an optional one is absent: then every check of it passes.
struct Named {
  const char* name;
  const qt_tensor* tensor;

  int64_t dim(int index) const { return index < tensor->ndim ? tensor->shape[index] : 1; }
  int64_t last() const { return tensor->ndim ? tensor->shape[tensor->ndim - 1] : 1; }
  int64_t rows() const { return last() ? tensor->elements / last() : 0; }  // all dimensions but the last
};
#define QT_OPERAND(field) \
  Named { #field, a.field }

// Keeps the first thing that is wrong.
class Check {
 public:
  explicit Check(std::string* message) : message_(message) {}
  bool ok() const { return ok_; }

  Check& dtype(Named x, uint32_t allowed);
  Check& same_dtype(Named x, Named like);
  Check& ndim(Named x, int dimensions);
  Check& shape(Named x, std::initializer_list<int64_t> expected);
  Check& same_shape(Named x, Named like);
  Check& elements(Named x, int64_t expected);
  Check& same_size(Named x, Named like);
  // Operands that come together or not at all.
  Check& together(Named x, Named y);
  // `x` makes sense beside `needed` alone.
  Check& needs(Named x, Named needed);
  Check& that(bool condition, const std::string& otherwise);

 private:
  Check& fail(std::string message);
  bool skip(Named x) const { return !ok_ || !x.tensor; }

  std::string* message_;
  bool ok_ = true;
};

std::string shape_text(const qt_tensor* tensor);

}  // namespace quantune
