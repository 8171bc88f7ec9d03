// Operations: decoded, checked, run or recorded; poisoned operands skip them.
#include <cstring>

#include "checks.h"
#include "device.h"
#include "dtype.h"
#include "op_table.h"

namespace quantune {
namespace {

// The optimizer's operation when one of its operands is poisoned: nothing was changed, so parameters and moments stay what
// they were, and the flag that the trainer reads before every save carries the cause.
bool keeps_outputs_when_skipped(int op, size_t operand, const Call& call) {
  return op == OP_adamw && call.operands[operand].kind == kInoutList;
}

void take_operand(Call* call, const Slot* slot, OperandKind kind) {
  const qt_tensor& tensor = slot->tensor;
  int64_t bytes = is_quantized(tensor.dtype) ? slot->storage->bytes : tensor.elements * dtype_bytes(tensor.dtype);
  call->operands.push_back({slot->storage, kind, bytes == slot->storage->bytes});
  call->tensors.push_back(tensor);
}

}  // namespace

// Fills `call` from the record. The pointers between its vectors are set at the end, when nothing grows any more.
bool Device::decode(Call* call, const int32_t* record, int32_t words, std::string* problem) {
  const OpInfo& info = op_table[call->op];
  call->site = site_;
  call->checked = false;
  call->slots.assign(static_cast<size_t>(info.operands), 0);
  call->operands.clear();
  call->tensors.clear();
  call->pointers.clear();
  call->lists.clear();
  int32_t at = 1;
  bool complete = true;
  auto tensor = [&](OperandKind kind, const char* name) {
    const Slot* slot = find(record[at++]);
    if (slot) return take_operand(call, slot, kind), true;
    if (problem->empty()) *problem = std::string(name) + ": the tensor is gone";
    return complete = false;
  };
  for (int i = 0; i < info.operands; i++) {
    OperandKind kind = info.kinds[i];
    uint64_t& slot = call->slots[static_cast<size_t>(i)];
    if (is_scalar(kind)) {
      if (at + 2 > words) return *problem = "a record is cut short", false;
      std::memcpy(&slot, record + at, 8);
      at += 2;
    } else if (is_list(kind)) {
      int32_t count = at < words ? record[at++] : -1;
      if (count < 0 || at + count > words) return *problem = "a record is cut short", false;
      slot = static_cast<uint64_t>(count) << 32 | call->tensors.size();
      for (int32_t j = 0; j < count; j++) tensor(kind, info.names[i]);
    } else {
      if (at >= words) return *problem = "a record is cut short", false;
      slot = call->tensors.size() + 1;
      if (record[at] == 0 && is_optional(kind)) {
        slot = 0;
        at++;
      } else if (!tensor(kind, info.names[i])) {
        slot = 0;
      }
    }
  }
  if (!complete) return false;
  size_t lists = 0;
  for (int i = 0; i < info.operands; i++) lists += is_list(info.kinds[i]);
  call->lists.reserve(lists);
  for (const qt_tensor& each : call->tensors) call->pointers.push_back(&each);
  for (int i = 0; i < info.operands; i++) {
    uint64_t& slot = call->slots[static_cast<size_t>(i)];
    if (is_list(info.kinds[i])) {
      call->lists.push_back({static_cast<int64_t>(slot >> 32), call->pointers.data() + (slot & 0xffffffff)});
      slot = reinterpret_cast<uint64_t>(&call->lists.back());
    } else if (!is_scalar(info.kinds[i]) && slot) {
      slot = reinterpret_cast<uint64_t>(&call->tensors[slot - 1]);
    }
  }
  return true;
}

void Device::poison_outputs(const Call& call, const FailurePtr& cause, bool skipped) {
  for (size_t i = 0; i < call.operands.size(); i++) {
    const Operand& operand = call.operands[i];
    if (!is_written(static_cast<OperandKind>(operand.kind))) continue;
    if (skipped && keeps_outputs_when_skipped(call.op, i, call)) continue;
    if (!operand.storage->poison) operand.storage->poison = cause;
  }
}

void Device::operation(int op, const int32_t* record, int32_t words) {
  std::string problem;
  if (!recording_) {
    call_.op = op;
    if (!decode(&call_, record, words, &problem)) {
      return poison_outputs(call_, failure(QT_INVALID_ARGUMENT, problem, op_table[op].name), false);
    }
    return execute(call_);
  }
  auto call = std::make_unique<Call>();
  call->op = op;
  if (!decode(call.get(), record, words, &problem)) {
    return poison_outputs(*call, failure(QT_INVALID_ARGUMENT, problem, op_table[op].name), false);
  }
  for (const Operand& operand : call->operands) {
    if (operand.storage->program == recording_) continue;
    operand.storage->references++;
    recording_->retained.push_back(operand.storage);
  }
  if (backend_->capture_begin) execute(*call);
  recording_->calls.push_back(std::move(call));
}

FailurePtr Device::device_lost() {
  qt_status status = backend_->sticky_status(stream_);
  if (status != QT_OK && !lost_)
    lost_ = failure(status, "the device is lost: it reported an error that it cannot recover from");
  return lost_;
}

// What the device has found out since: the storages that it concerns are poisoned from here on.
void Device::apply_late_failures() {
  LateFailures::Poisoned poisoned = late_.take();
  auto apply = [&](Storage* storage) {
    auto found = poisoned.find(storage->id);
    if (found != poisoned.end() && !storage->poison) storage->poison = found->second;
  };
  for (const Slot& slot : slots_) {
    if (slot.handle) apply(slot.storage);
  }
  for (const auto& program : programs_) {
    for (Storage* storage : program.second->created) apply(storage);
    for (Storage* storage : program.second->retained) apply(storage);
  }
}

void Device::execute(Call& call) {
  const OpInfo& info = op_table[call.op];
  if (late_.news()) apply_late_failures();
  if (lost_) return poison_outputs(call, lost_, false);
  for (const Operand& operand : call.operands) {
    bool unusable = !operand.storage->block.data || is_read(static_cast<OperandKind>(operand.kind));
    if (unusable && operand.storage->poison) return poison_outputs(call, FailurePtr(operand.storage->poison), true);
  }
  message_.clear();
  qt_status status = QT_INVALID_ARGUMENT;
  if (!call.checked) call.checked = check_op(call.op, call.slots.data(), &message_);
  if (call.checked) {
    status = op_function(backend_, call.op)(stream_, call.slots.data());
    if (backend_->operation_done) backend_->operation_done(stream_);
    late_.launched(call, status == QT_OK && !recording_);
  }
  if (status != QT_OK) {
    if (message_.empty()) message_ = "the operation failed with status " + std::to_string(status);
    auto cause = std::make_shared<Failure>(Failure{status, message_, info.name, call.site});
    poison_outputs(call, cause, false);
    if (status == QT_DEVICE_ERROR) device_lost();
    return;
  }
  for (const Operand& operand : call.operands) {
    if (operand.whole && operand.storage->poison && is_overwritten(static_cast<OperandKind>(operand.kind))) {
      operand.storage->poison = nullptr;
    }
  }
}

void Device::record_begin(int32_t id) {
  auto program = std::make_unique<Program>();
  recording_ = program.get();
  programs_[id] = std::move(program);
  if (backend_->capture_begin && backend_->capture_begin(stream_) != QT_OK) device_lost();
}

void Device::record_end(int32_t) {
  if (recording_ && backend_->capture_end && backend_->capture_end(stream_, &recording_->captured) != QT_OK) device_lost();
  recording_ = nullptr;
}

void Device::replay(int32_t id) {
  auto found = programs_.find(id);
  if (found == programs_.end()) return;
  Program& program = *found->second;
  if (late_.news()) apply_late_failures();
  if (!program.captured) {
    for (const auto& call : program.calls) {
      if (stopping_.load(std::memory_order_relaxed)) return;
      execute(*call);
    }
    return;
  }
  FailurePtr cause = lost_;
  for (const Storage* storage : program.retained) {
    if (!cause && storage->poison) cause = storage->poison;
  }
  if (!cause) {
    qt_status status = backend_->replay(stream_, program.captured);
    late_.replayed(program);
    if (status != QT_OK) {
      cause = failure(QT_DEVICE_ERROR, "the replay of a recorded program failed");
      device_lost();
    }
  }
  if (!cause) return;
  for (const auto& call : program.calls) poison_outputs(*call, cause, true);
}

void Device::release_program(int32_t id) {
  auto found = programs_.find(id);
  if (found == programs_.end()) return;
  Program& program = *found->second;
  if (program.captured) backend_->program_release(stream_, program.captured);
  for (Storage* storage : program.retained) drop(storage);
  for (const Program::Charged& charged : program.blocks) counters_->add(charged.purpose, -charged.bytes);
  for (Storage* storage : program.created) {
    if (storage->references > 0) {  // JavaScript still holds it: it goes on by itself
      storage->program = nullptr;
      if (storage->block.data) counters_->add(storage->purpose, storage->bytes);
      for (Program::Charged& charged : program.blocks) {
        if (charged.block.data == storage->block.data) charged.block = {};
      }
    } else {
      delete storage;
    }
  }
  for (const Program::Charged& charged : program.blocks) allocator_->release(charged.block);
  programs_.erase(found);
}

}  // namespace quantune
