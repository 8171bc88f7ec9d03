// What happens when the stream has come so far: a thread waits for events in their order, so that no host function holds the
// stream up; and what kernels found wrong on the way there (reports).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "plugin.h"

namespace quantune::cuda {

cudaEvent_t CudaStream::take_event() {
  std::lock_guard<std::mutex> lock(mutex);
  if (!events.empty()) {
    cudaEvent_t event = events.back();
    events.pop_back();
    return event;
  }
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  return event;
}

qt_status CudaStream::complete_later(Pending item) {
  item.event = take_event();
  item.ordinal = ordinal;
  cudaError_t error = item.event ? cudaEventRecord(item.event, current()) : cudaErrorMemoryAllocation;
  if (error != cudaSuccess) return check(error, "an event could not be recorded");
  std::lock_guard<std::mutex> lock(mutex);
  pending.push_back(item);
  changed.notify_one();
  return QT_OK;
}

void CudaStream::start_completions() {
  completions = std::thread([this] { run_completions(); });
}

void CudaStream::stop_completions() {
  {
    std::lock_guard<std::mutex> lock(mutex);
    closing = true;
    changed.notify_one();
  }
  if (completions.joinable()) completions.join();
}

// A token's round trip is worth some spinning; a training step's is not.
static cudaError_t wait_for(cudaEvent_t event) {
  auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
  while (std::chrono::steady_clock::now() < until) {
    cudaError_t error = cudaEventQuery(event);
    if (error != cudaErrorNotReady) return error;
    std::this_thread::yield();
  }
  return cudaEventSynchronize(event);
}

void CudaStream::run_completions() {
  cudaSetDevice(device);
  std::unique_lock<std::mutex> lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return closing || !pending.empty(); });
    if (pending.empty()) return;
    Pending item = pending.front();
    pending.pop_front();
    lock.unlock();
    cudaError_t error = wait_for(item.event);
    if (error != cudaSuccess) {
      int none = cudaSuccess;
      lost.compare_exchange_strong(none, error);
    } else {
      reports.passed(this, item.ordinal);
      if (item.copy_to) std::memcpy(item.copy_to, item.copy_from, static_cast<size_t>(item.bytes));
    }
    if (item.ring_end >= 0) ring.release(item.ring_end);
    if (item.done) item.done(item.context, error == cudaSuccess ? QT_OK : QT_DEVICE_ERROR);
    lock.lock();
    events.push_back(item.event);
  }
}

// ---- reports ---------------------------------------------------------------------------------------------------------------

bool Reports::open() {
  void *host = nullptr, *mapped = nullptr;
  if (cudaHostAlloc(&host, kSlots * sizeof(ReportSlot), cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess)
    return false;
  host_ = static_cast<ReportSlot*>(host);
  std::memset(host, 0, kSlots * sizeof(ReportSlot));
  if (cudaHostGetDevicePointer(&mapped, host, 0) != cudaSuccess) return false;
  device_ = static_cast<ReportSlot*>(mapped);
  entries_.resize(kSlots);
  return true;
}

void Reports::close() {
  if (host_) cudaFreeHost(host_);
  host_ = nullptr;
}

// A slot serves one launch, or a recorded program as long as it lives. There are more than operations are ever in flight;
// should all be busy, what waits longest is shared, and the later operation's report may carry the earlier one's name.
Report Reports::next(CudaStream* stream, const char* format) {
  std::lock_guard<std::mutex> lock(mutex_);
  int tried = 0;
  while (entries_[static_cast<size_t>(at_)].busy && tried++ < kSlots) at_ = (at_ + 1) % kSlots;
  int slot = at_;
  at_ = (at_ + 1) % kSlots;
  entries_[static_cast<size_t>(slot)] = {format, stream->ordinal, true};
  if (stream->capturing) {
    stream->capturing->reports.push_back(slot);
  } else {
    in_flight_.push_back(slot);
  }
  return Report{device_ + slot};
}

void Reports::replayed(Program* program, int64_t ordinal) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (program->reports.empty()) return;
  program->in_flight.push_back(ordinal);
  if (std::find(programs_.begin(), programs_.end(), program) == programs_.end()) programs_.push_back(program);
}

void Reports::forget(Program* program) {
  std::lock_guard<std::mutex> lock(mutex_);
  programs_.erase(std::remove(programs_.begin(), programs_.end(), program), programs_.end());
  for (int slot : program->reports) {
    entries_[static_cast<size_t>(slot)].busy = false;
    host_[slot].claimed = 0;
  }
  program->reports.clear();
}

void Reports::tell(CudaStream* stream, int slot, int64_t ordinal) {
  ReportSlot& report = host_[slot];
  if (*static_cast<volatile unsigned int*>(&report.claimed) == 0) return;
  char text[400];
  std::snprintf(text, sizeof text, entries_[static_cast<size_t>(slot)].format, report.values[0], report.values[1],
                report.values[2]);
  stream->host->refused(stream, ordinal, text);
  report.claimed = 0;
}

void Reports::passed(CudaStream* stream, int64_t ordinal) {
  std::lock_guard<std::mutex> lock(mutex_);
  while (!in_flight_.empty() && entries_[static_cast<size_t>(in_flight_.front())].ordinal < ordinal) {
    int slot = in_flight_.front();
    in_flight_.pop_front();
    tell(stream, slot, entries_[static_cast<size_t>(slot)].ordinal);
    entries_[static_cast<size_t>(slot)].busy = false;
  }
  for (size_t i = 0; i < programs_.size();) {
    Program* program = programs_[i];
    if (program->in_flight.front() < ordinal) {
      for (int slot : program->reports) tell(stream, slot, program->in_flight.front());
      while (!program->in_flight.empty() && program->in_flight.front() < ordinal) program->in_flight.pop_front();
    }
    if (program->in_flight.empty())
      programs_.erase(programs_.begin() + static_cast<std::ptrdiff_t>(i));
    else
      i++;
  }
}

}  // namespace quantune::cuda

quantune::cuda::Report qt_stream::report(const char* format) {
  auto* self = static_cast<quantune::cuda::CudaStream*>(this);
  return self->reports.next(self, format);
}
