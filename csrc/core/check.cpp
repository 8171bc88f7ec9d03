#include "check.h"

#include "dtype.h"

namespace quantune {
namespace {

template <class List>
std::string bracketed(const List& list) {
  std::string text = "[";
  for (int64_t dimension : list) text += (text.size() > 1 ? ", " : "") + std::to_string(dimension);
  return text + "]";
}

std::string dtypes_text(uint32_t allowed) {
  std::string text;
  for (int32_t dtype = 0; dtype < kDtypes; dtype++) {
    if (!(allowed >> dtype & 1)) continue;
    bool last = allowed >> (dtype + 1) == 0;
    text += (text.empty() ? "" : last ? " or " : ", ") + std::string(dtype_name(dtype));
  }
  return text;
}

}  // namespace

std::string shape_text(const qt_tensor* tensor) {
  struct Dimensions {
    const qt_tensor* tensor;
    const int64_t* begin() const { return tensor->shape; }
    const int64_t* end() const { return tensor->shape + tensor->ndim; }
  };
  return bracketed(Dimensions{tensor});
}

Check& Check::fail(std::string message) {
  ok_ = false;
  *message_ = std::move(message);
  return *this;
}

Check& Check::dtype(Named x, uint32_t allowed) {
  if (skip(x) || allowed >> x.tensor->dtype & 1) return *this;
  return fail(std::string(x.name) + " is " + dtype_name(x.tensor->dtype) + ", expected " + dtypes_text(allowed));
}

Check& Check::same_dtype(Named x, Named like) {
  if (skip(x) || skip(like) || x.tensor->dtype == like.tensor->dtype) return *this;
  return fail(std::string(x.name) + " is " + dtype_name(x.tensor->dtype) + ", expected " + dtype_name(like.tensor->dtype) +
              " as " + like.name);
}

Check& Check::ndim(Named x, int dimensions) {
  if (skip(x) || x.tensor->ndim == dimensions) return *this;
  return fail(std::string(x.name) + " has the shape " + shape_text(x.tensor) + ", expected " + std::to_string(dimensions) +
              " dimensions");
}

Check& Check::shape(Named x, std::initializer_list<int64_t> expected) {
  if (skip(x)) return *this;
  bool same = static_cast<size_t>(x.tensor->ndim) == expected.size();
  int i = 0;
  for (int64_t dimension : expected) same = same && x.tensor->shape[i++] == dimension;
  if (same) return *this;
  return fail(std::string(x.name) + " has the shape " + shape_text(x.tensor) + ", expected " + bracketed(expected));
}

Check& Check::same_shape(Named x, Named like) {
  if (skip(x) || skip(like)) return *this;
  bool same = x.tensor->ndim == like.tensor->ndim;
  for (int i = 0; same && i < x.tensor->ndim; i++) same = x.tensor->shape[i] == like.tensor->shape[i];
  if (same) return *this;
  return fail(std::string(x.name) + " has the shape " + shape_text(x.tensor) + ", expected " + shape_text(like.tensor) +
              " as " + like.name);
}

Check& Check::elements(Named x, int64_t expected) {
  if (skip(x) || x.tensor->elements == expected) return *this;
  return fail(std::string(x.name) + " has the shape " + shape_text(x.tensor) + ", expected " + std::to_string(expected) +
              " elements");
}

Check& Check::same_size(Named x, Named like) {
  if (skip(x) || skip(like) || x.tensor->elements == like.tensor->elements) return *this;
  return fail(std::string(x.name) + " has the shape " + shape_text(x.tensor) + ", expected as many elements as " + like.name +
              " " + shape_text(like.tensor));
}

Check& Check::together(Named x, Named y) { return needs(x, y).needs(y, x); }

Check& Check::needs(Named x, Named needed) {
  if (skip(x) || needed.tensor) return *this;
  return fail(std::string(x.name) + " is given without " + needed.name);
}

Check& Check::that(bool condition, const std::string& otherwise) {
  if (!ok_ || condition) return *this;
  return fail(otherwise);
}

}  // namespace quantune
