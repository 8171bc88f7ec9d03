// Declares one function per operation in the namespace of the variant being compiled (QT_CPU_VARIANT: generic, avx2, avx512,
// avx512bf16). Every family file is compiled once per variant; nothing in these files may live outside that namespace.
// Keep the C++ library's containers out of them: an inline function compiled for AVX-512 must not end up in generic code.
#pragma once
#include "simd/vec.h"
#include "stream.h"

namespace quantune::cpu::QT_CPU_VARIANT {

#define OP(name) qt_status name(qt_stream* stream, const qt_##name##_args* args);
#include "../core/each_op.h"

int64_t attention_plan_size(int64_t queries, int64_t keys);

}  // namespace quantune::cpu::QT_CPU_VARIANT
