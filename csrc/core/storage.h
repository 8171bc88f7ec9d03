// What a handle stands for. All of it belongs to the queue's thread.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "allocator.h"
#include "host.h"

namespace quantune {

class Program;

// A reference-counted buffer. Poison belongs to it, so that views of one buffer share their fate.
struct Storage {
  uint64_t id = 0;  // never used again
  Block block;      // no data: the allocation failed, which no overwriting can heal
  int64_t bytes = 0;
  int32_t purpose = kOther;
  int32_t references = 1;
  qt_quant quant{};
  FailurePtr poison;
  Program* program = nullptr;  // the program in whose recording it was created, which then owns it and its block
};

struct Slot {
  int32_t handle = 0;  // 0: free
  qt_tensor tensor{};
  Storage* storage = nullptr;
};

// A tensor operand of an operation with what is needed to poison it.
struct Operand {
  Storage* storage;
  uint8_t kind;  // OperandKind
  bool whole;    // covers its buffer: overwriting it heals poison
};

// An operation ready to run: its argument slots point into `tensors` and `lists`.
struct Call {
  int op = 0;
  int32_t site = 0;
  bool checked = false;  // its shapes do not change: once is enough
  std::vector<uint64_t> slots;
  std::vector<Operand> operands;
  std::vector<qt_tensor> tensors;
  std::vector<const qt_tensor*> pointers;
  std::vector<qt_tensor_list> lists;
};

// What record() captured: operations with buffers at fixed addresses, which it keeps alive.
class Program {
 public:
  struct Charged {
    Block block;
    int32_t purpose;
    int64_t bytes;  // as counted in MemoryCounters
  };
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<Storage*> retained;          // from outside: one reference each time an operation names it
  std::vector<Storage*> created;           // while recording: the program's own
  std::vector<Charged> blocks;             // their memory
  std::multimap<int64_t, Block> reusable;  // those of them that were released while recording
  void* captured = nullptr;                // the backend's own form of it
};

}  // namespace quantune
