// Declares one launcher per operation of ops.def: qt_status NAME(qt_stream*, const qt_NAME_args*).
#pragma once
#include "stream.h"

namespace quantune::cuda {

#define OP(name) qt_status name(qt_stream* stream, const qt_##name##_args* args);
#include "../csrc/core/each_op.h"

int64_t attention_plan_size(int64_t queries, int64_t keys);

}  // namespace quantune::cuda
