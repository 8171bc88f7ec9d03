#include "late_failures.h"

#include "op_table.h"

namespace quantune {

// With an entry's operands poisoned or not: what becomes of its outputs, or of its read.
void LateFailures::pass_on(const Entry& entry, Poisoned* poisoned) {
  FailurePtr cause;
  for (const Touched& operand : entry.operands) {
    auto found = operand.read ? poisoned->find(operand.storage) : poisoned->end();
    if (found != poisoned->end() && !cause) cause = found->second;
  }
  if (entry.request && cause) failed_reads_.emplace(entry.request, cause);
  for (const Touched& operand : entry.operands) {
    if (!operand.written) continue;
    if (cause)
      poisoned->emplace(operand.storage, cause);
    else if (operand.heals)
      poisoned->erase(operand.storage);
  }
}

void LateFailures::append(Entry entry) {
  if (!poisoned_.empty()) pass_on(entry, &poisoned_);
  log_.push_back(std::move(entry));
}

void LateFailures::launched(const Call& call, bool remember) {
  if (!enabled_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t number = operations_++;
  if (!remember) return;
  Entry entry{number, 0, call.site, op_table[call.op].name, {}};
  entry.operands.reserve(call.operands.size());
  for (const Operand& operand : call.operands) {
    auto kind = static_cast<OperandKind>(operand.kind);
    // The optimizer leaves what it updates alone when the norm is not finite, as it is after an operation that failed.
    bool keeps = call.op == OP_adamw && kind == kInoutList;
    entry.operands.push_back(
        {operand.storage->id, is_read(kind), is_written(kind) && !keeps, is_overwritten(kind) && operand.whole});
  }
  append(std::move(entry));
}

void LateFailures::replayed(const Program& program) {
  if (!enabled_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  Entry entry{operations_++, 0, 0, "replay", {}};
  for (const auto& call : program.calls) {
    for (const Operand& operand : call->operands) {
      auto kind = static_cast<OperandKind>(operand.kind);
      entry.operands.push_back({operand.storage->id, is_read(kind), is_written(kind), false});
    }
  }
  append(std::move(entry));
}

void LateFailures::overwritten(const Storage* storage) {
  if (!enabled_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  append({-1, 0, 0, "", {{storage->id, false, true, true}}});
}

uint64_t LateFailures::reading(int32_t request, const Storage* storage) {
  if (!enabled_) return 0;
  std::lock_guard<std::mutex> lock(mutex_);
  append({-1, request, 0, "", {{storage->id, true, false, false}}});
  return first_ + log_.size();
}

uint64_t LateFailures::position() {
  std::lock_guard<std::mutex> lock(mutex_);
  return first_ + log_.size();
}

LateFailures::Poisoned LateFailures::take() {
  std::lock_guard<std::mutex> lock(mutex_);
  news_.store(false, std::memory_order_release);
  Poisoned taken;
  taken.swap(poisoned_);
  return taken;
}

void LateFailures::refused(int64_t operation, const char* message) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto at = log_.begin();
  while (at != log_.end() && at->operation != operation) ++at;
  if (at == log_.end()) return;
  auto cause = std::make_shared<Failure>(Failure{QT_INVALID_ARGUMENT, message, at->name, at->site});
  for (const Touched& operand : at->operands) {
    if (operand.written) poisoned_.emplace(operand.storage, cause);
  }
  for (++at; at != log_.end(); ++at) pass_on(*at, &poisoned_);
  news_.store(true, std::memory_order_release);
}

FailurePtr LateFailures::finished(int32_t request, uint64_t position) {
  if (!enabled_) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  while (first_ < position && !log_.empty()) {
    log_.pop_front();
    first_++;
  }
  auto found = failed_reads_.find(request);
  if (found == failed_reads_.end()) return nullptr;
  FailurePtr failure = found->second;
  failed_reads_.erase(found);
  return failure;
}

}  // namespace quantune
