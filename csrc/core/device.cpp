#include "device.h"

namespace quantune {
namespace {

constexpr int64_t kSpinNs = 100000;
constexpr int64_t kIdleMs = 2000;  // then waiting memory goes back to the system

}  // namespace

Device::Device(const qt_backend* backend, int32_t index, std::function<void()> notify)
    : backend_(backend),
      index_(index),
      notify_(std::move(notify)),
      host_{quantune_fail, quantune_refused, &stop_flag_},
      counters_(new MemoryCounters),
      pages_(new std::atomic<int32_t*>[kMostPages]) {
  for (int32_t i = 0; i < kMostPages; i++) pages_[i].store(nullptr, std::memory_order_relaxed);
}

void Device::start(int32_t* control) {
  static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free, "shared with JavaScript");
  control_ = reinterpret_cast<std::atomic<uint32_t>*>(control);
  thread_ = std::thread([this] { run(); });
}

void Device::add_page(int32_t page, int32_t* words) { pages_[page].store(words, std::memory_order_release); }

void Device::wake() {
  wakes_.fetch_add(1);
  os::wake_all(&wakes_);
}

void Device::stage(int32_t id, Staged staged) {
  std::lock_guard<std::mutex> lock(shared_);
  staged_[id] = std::move(staged);
}

void Device::add_file(int32_t id, std::shared_ptr<MappedFile> file) {
  std::lock_guard<std::mutex> lock(shared_);
  files_[id] = std::move(file);
}

void Device::add_read(int32_t request, ReadRequest read) {
  std::lock_guard<std::mutex> lock(shared_);
  reads_[request] = read;
}

std::vector<Completion> Device::take_completions() {
  std::lock_guard<std::mutex> lock(shared_);
  return std::move(completions_);
}

void Device::complete(int32_t request, FailurePtr failure) {
  {
    std::lock_guard<std::mutex> lock(shared_);
    completions_.push_back({request, std::move(failure)});
    if (completions_.size() > 1) return;  // whoever takes the first takes all
  }
  if (!stopping_.load()) notify_();
}

void Device::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  reinterpret_cast<std::atomic<int32_t>*>(&stop_flag_)->store(1);
  wake();
  thread_.join();
}

bool Device::open_backend() {
  stream_ = backend_->open(&host_, index_);
  if (!stream_) {
    const char* reason = backend_->refusal ? backend_->refusal() : "";
    complete(0, failure(QT_DEVICE_ERROR, reason));
    return false;
  }
  remember_stream(stream_, &message_, &late_);
  if (backend_->refuses_late) late_.enable();
  allocator_.reset(new Allocator(backend_, stream_, counters_.get()));
  complete(0, nullptr);
  return true;
}

void Device::close_backend() {
  recording_ = nullptr;
  while (!programs_.empty()) release_program(programs_.begin()->first);
  for (Slot& slot : slots_) {
    if (slot.handle) release(slot.handle);
  }
  allocator_.reset();
  backend_->close(stream_);
  forget_stream(stream_);
}

void Device::run() {
  os::name_thread("quantune-queue");
  if (!open_backend()) return;
  int32_t* page = pages_[0].load(std::memory_order_acquire);
  uint32_t head = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    uint32_t tail = control_[kControlTail].load(std::memory_order_acquire);
    if (head == tail) {
      wait_for_work(head);
      continue;
    }
    while (head != tail && !stopping_.load(std::memory_order_relaxed)) {
      const int32_t* record = page + head % kPageWords;
      int32_t opcode = *record & ((1 << kOpcodeBits) - 1), words = *record >> kOpcodeBits;
      bool inside = words >= 1 && static_cast<uint32_t>(words) <= tail - head &&
                    head % kPageWords + static_cast<uint32_t>(words) <= static_cast<uint32_t>(kPageWords);
      if (opcode == kNextPage && inside && record[1] >= 0 && record[1] < kMostPages && pages_[record[1]].load()) {
        page = pages_[record[1]].load(std::memory_order_acquire);
        head += kPageWords - head % kPageWords;
        control_[kControlHead].store(head, std::memory_order_release);
        continue;
      }
      if (!inside || !process(record, opcode, words)) {
        // The writer and the reader disagree: nothing after this can be trusted.
        lost_ = failure(QT_INTERNAL, "the operation queue is corrupt at opcode " + std::to_string(opcode));
        head = tail;
        break;
      }
      head += static_cast<uint32_t>(words);
    }
    control_[kControlHead].store(head, std::memory_order_release);
  }
  close_backend();
}

void Device::wait_for_work(uint32_t head) {
  std::atomic<uint32_t>& tail = control_[kControlTail];
  int64_t spin_end = os::monotonic_ns() + kSpinNs;
  while (os::monotonic_ns() < spin_end) {
    if (tail.load(std::memory_order_acquire) != head || stopping_.load()) return;
    os::yield_thread();
  }
  // Dekker: either the writer sees that we sleep, or we see what it published.
  uint32_t seen = wakes_.load();
  control_[kControlSleeping].store(1, std::memory_order_seq_cst);
  while (tail.load(std::memory_order_seq_cst) == head && !stopping_.load()) {
    bool idle = !os::wait_while_equal(&wakes_, seen, allocator_->cached() > 0 ? kIdleMs : -1);
    if (idle) allocator_->trim();
    seen = wakes_.load();
  }
  control_[kControlSleeping].store(0, std::memory_order_seq_cst);
}

}  // namespace quantune
