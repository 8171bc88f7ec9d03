// What a backend and the core share: plain structs and a C function table, generated from ops.def. No C++ types cross it.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QT_ABI_VERSION 1
#define QT_MAX_DIMS 4

typedef enum qt_dtype {
  QT_FLOAT32 = 0,
  QT_BFLOAT16 = 1,
  QT_FLOAT16 = 2,
  QT_INT32 = 3,
  QT_INT8 = 4,
  QT_UINT8 = 5,
  QT_NF4 = 6,
  QT_FP4 = 7,
  QT_LLM_INT8 = 8,
} qt_dtype;

typedef enum qt_status {
  QT_OK = 0,
  QT_INVALID_ARGUMENT = 1,
  QT_OUT_OF_MEMORY = 2,
  QT_DEVICE_ERROR = 3,
  QT_UNSUPPORTED = 4,
  QT_INTERNAL = 5,
} qt_status;

// Where the parts of a quantized weight lie inside its buffer (bytes from `data`); computed by the core (quant_layout.h).
// LLM.int8: a block is one output of the layer with its inputs; their codes are a row, whichever way the tensor lies.
typedef struct qt_quant {
  int64_t block_size;     // 64 or 128 elements a block; LLM.int8: the inputs
  int64_t blocks;         // ceil(elements / block_size); LLM.int8: the outputs
  int64_t double_quant;   // 0 | 1
  int64_t codes;          // uint8 [ceil(elements / 2)], first code in the high nibble; LLM.int8: int8 [blocks, row_bytes]
  int64_t absmax;         // float32 [blocks], or uint8 [blocks] with double_quant
  int64_t nested_absmax;  // float32 [ceil(blocks / 256)], double_quant only
  int64_t nested_code;    // float32 [256], double_quant only
  int64_t offset;         // float32 [1], double_quant only
  int64_t bytes;          // of the whole buffer
  int64_t row_bytes;      // LLM.int8: a multiple of 64, with zeros behind a row's codes
  int64_t transposed;     // LLM.int8: 0, the tensor is [outputs, inputs] | 1, it is [inputs, outputs]
  double threshold;       // LLM.int8: a column of x with a magnitude of at least this is not quantized; 0: all are
} qt_quant;

// A tensor as a kernel sees it: contiguous, row-major.
typedef struct qt_tensor {
  void* data;
  int64_t shape[QT_MAX_DIMS];
  int32_t ndim;
  int32_t dtype;
  int64_t elements;
  const qt_quant* quant;  // quantized only, else null
} qt_tensor;

typedef struct qt_tensor_list {
  int64_t count;
  const qt_tensor* const* items;
} qt_tensor_list;

// Argument structs: every field is one 8-byte slot, in the order of ops.def.
#define OP(name)                                    \
  typedef struct qt_##name##_args qt_##name##_args; \
  struct qt_##name##_args {
#define QT_TENSOR_FIELD(field) const qt_tensor* field;
#define QT_LIST_FIELD(field) const qt_tensor_list* field;
#define OUT QT_TENSOR_FIELD
#define INOUT QT_TENSOR_FIELD
#define IN QT_TENSOR_FIELD
#define OUT_OPT QT_TENSOR_FIELD
#define INOUT_OPT QT_TENSOR_FIELD
#define IN_OPT QT_TENSOR_FIELD
#define OUT_LIST QT_LIST_FIELD
#define INOUT_LIST QT_LIST_FIELD
#define IN_LIST QT_LIST_FIELD
#define F64(field) double field;
#define I64(field) int64_t field;
// clang-format off
#define END };
// clang-format on
#include "ops.def"
#include "ops_undef.h"

// A backend's execution stream. Opaque to the core; `qt_host` is what the core gives a backend.
typedef struct qt_stream qt_stream;

typedef struct qt_host {
  // Remembers why the operation failed (printf-like); returns `status`, so that a kernel can `return fail(...)`.
  qt_status (*fail)(qt_stream* stream, qt_status status, const char* format, ...);
  // From any thread, before the `done` of what was queued after it: an operation that was accepted turned out to have been
  // given a value that it cannot work on. `operation` counts the calls of operations and of replay on this stream from 0.
  void (*refused)(qt_stream* stream, int64_t operation, const char* message);
  // Not 0 while the environment is being torn down: long operations look at it and give up.
  const int32_t* stop;
} qt_host;

typedef struct qt_memory_info {
  int64_t free_bytes;
  int64_t total_bytes;
} qt_memory_info;

typedef void (*qt_done)(void* context, qt_status status);

// What a backend supplies. Calls come from the device's queue thread alone.
typedef struct qt_backend {
  uint32_t abi_version;
  const char* name;      // "cpu", "cuda"
  const char* variant;   // "avx512", "sm_90a", …
  int32_t refuses_late;  // 1: calls qt_host's `refused`

  qt_stream* (*open)(const qt_host* host, int32_t device_index);  // null: refused, the reason is in `refusal`
  const char* (*refusal)(void);
  void (*close)(qt_stream*);

  void* (*allocate)(qt_stream*, int64_t bytes);  // 64-byte aligned at least, null when there is not enough
  void (*release)(qt_stream*, void* data);
  qt_memory_info (*memory_info)(qt_stream*);

  // Asynchronous copies: `done` is called (from any thread) once the copy and all operations before it have completed; when
  // they return another status than QT_OK, it is not called.
  qt_status (*upload)(qt_stream*, void* to, const void* from, int64_t bytes, qt_done done, void* context);
  qt_status (*download)(qt_stream*, void* to, const void* from, int64_t bytes, qt_done done, void* context);
  // `done` once everything queued so far has completed.
  qt_status (*event)(qt_stream*, qt_done done, void* context);

  // Capture of a program and its replay; null where the core replays the records itself (CPU).
  qt_status (*capture_begin)(qt_stream*);
  qt_status (*capture_end)(qt_stream*, void** program);
  qt_status (*replay)(qt_stream*, void* program);
  void (*program_release)(qt_stream*, void* program);

  // After each operation was queued (launched); may be null. The CPU frees its scratch memory here.
  void (*operation_done)(qt_stream*);

  qt_status (*sticky_status)(qt_stream*);  // not QT_OK: the device is lost

  int64_t (*attention_plan_size)(int64_t queries, int64_t keys);  // int32 elements

#define OP(name) qt_status (*name)(qt_stream*, const struct qt_##name##_args*);
#include "each_op.h"
} qt_backend;

#ifdef __cplusplus
}
#endif
