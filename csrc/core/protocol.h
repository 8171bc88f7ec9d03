// The records that JavaScript writes into shared pages and the queue's thread reads (lib/tensor/queue.ts writes them).
// A record is its header word, length << 12 | opcode with the length in words and the header included, and its operands:
// one word a tensor handle (0: absent), a count and as many words for a list, two words for each F64 and I64.
#pragma once
#include <cstdint>

namespace quantune {

constexpr int32_t kPageWords = 1 << 15;
constexpr int32_t kMostPages = 1 << 14;
constexpr int32_t kOpcodeBits = 12;
constexpr int32_t kFirstOp = 64;   // operations: kFirstOp + their index in ops.def
constexpr int32_t kSlotBits = 20;  // of a handle; the rest is its generation, never 0

// How a weight is quantized: 4 bits, block size | double quantization << 16; LLM.int8, the threshold as a float32, with the
// sign bit where the weight is transposed.

// Words of the control block, on cache lines of their own.
constexpr int32_t kControlTail = 0;       // words published, written by JavaScript
constexpr int32_t kControlHead = 16;      // words consumed, written by the queue
constexpr int32_t kControlSleeping = 32;  // 1 while the queue's thread needs a wake-up call
constexpr int32_t kControlWords = 48;

enum CoreOpcode : int32_t {
  kNextPage = 1,    // page
  kCreate,          // handle, dtype, purpose, how a weight is quantized, number of dimensions, dimensions
  kView,            // handle, base, first element (i64), number of dimensions, dimensions
  kRelease,         // handle
  kWrite,           // handle, staged data
  kWriteFile,       // handle, file, byte offset (i64)
  kRead,            // handle, request
  kEvent,           // request
  kSite,            // public call
  kRecordBegin,     // program
  kRecordEnd,       // program
  kReplay,          // program
  kReleaseProgram,  // program
  kForgetFile,      // file
};

}  // namespace quantune
