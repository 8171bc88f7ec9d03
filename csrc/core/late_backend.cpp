// The CPU backend, completing late: operations and copies run in order on a thread of their own, some time after they were
// queued, as on a GPU. The tests run on it to prove that nothing relies on "returned means done".
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "backends.h"
#include "host.h"
#include "op_table.h"

namespace quantune {
namespace {

constexpr std::chrono::microseconds kDelay(300);

const qt_backend* inner_backend() {
  std::string error;
  return cpu_backend(&error);
}

// An operation's arguments, copied with all that they point to: the caller's are gone when it runs.
struct Arguments {
  uint64_t slots[kMostOperands];
  std::deque<qt_tensor> tensors;
  std::deque<qt_quant> quants;
  std::deque<std::vector<const qt_tensor*>> pointers;
  std::deque<qt_tensor_list> lists;

  const qt_tensor* copy(const qt_tensor* tensor) {
    tensors.push_back(*tensor);
    if (tensor->quant) {
      quants.push_back(*tensor->quant);
      tensors.back().quant = &quants.back();
    }
    return &tensors.back();
  }

  Arguments(int op, const void* args) {
    const OpInfo& info = op_table[op];
    std::memcpy(slots, args, static_cast<size_t>(info.operands) * 8);
    for (int i = 0; i < info.operands; i++) {
      if (is_scalar(info.kinds[i]) || slots[i] == 0) continue;
      if (is_list(info.kinds[i])) {
        auto* list = reinterpret_cast<const qt_tensor_list*>(slots[i]);
        pointers.emplace_back();
        for (int64_t j = 0; j < list->count; j++) pointers.back().push_back(copy(list->items[j]));
        lists.push_back({list->count, pointers.back().data()});
        slots[i] = reinterpret_cast<uint64_t>(&lists.back());
      } else {
        slots[i] = reinterpret_cast<uint64_t>(copy(reinterpret_cast<const qt_tensor*>(slots[i])));
      }
    }
  }
};

struct LateStream {
  const qt_backend* inner = inner_backend();
  qt_stream* stream = nullptr;
  std::string message;
  std::mutex mutex, memory;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  std::atomic<bool> closing{false};
  std::atomic<int> failed{QT_OK};
  std::thread thread;

  void submit(std::function<void()> item) {
    std::lock_guard<std::mutex> lock(mutex);
    work.push_back(std::move(item));
    changed.notify_one();
  }

  void run() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return closing || !work.empty(); });
      if (work.empty()) return;
      std::function<void()> item = std::move(work.front());
      work.pop_front();
      lock.unlock();
      item();
      lock.lock();
    }
  }
};

LateStream* late(qt_stream* stream) { return reinterpret_cast<LateStream*>(stream); }

qt_stream* open(const qt_host* host, int32_t index) {
  auto* self = new LateStream;
  self->stream = self->inner->open(host, index);
  remember_stream(self->stream, &self->message, nullptr);
  self->thread = std::thread([self] { self->run(); });
  return reinterpret_cast<qt_stream*>(self);
}

void close(qt_stream* stream) {
  LateStream* self = late(stream);
  {
    std::lock_guard<std::mutex> lock(self->mutex);
    self->closing = true;
    self->changed.notify_one();
  }
  self->thread.join();  // after all copies; operations are given up
  forget_stream(self->stream);
  self->inner->close(self->stream);
  delete self;
}

void* allocate(qt_stream* stream, int64_t bytes) {
  std::lock_guard<std::mutex> lock(late(stream)->memory);
  return late(stream)->inner->allocate(late(stream)->stream, bytes);
}

void release(qt_stream* stream, void* data) {
  LateStream* self = late(stream);
  self->submit([self, data] {
    std::lock_guard<std::mutex> lock(self->memory);
    self->inner->release(self->stream, data);
  });
}

qt_status copy(qt_stream* stream, void* to, const void* from, int64_t bytes, qt_done done, void* context) {
  LateStream* self = late(stream);
  self->submit([=] {
    if (!self->closing) std::this_thread::sleep_for(kDelay);
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
    done(context, static_cast<qt_status>(self->failed.load()));
  });
  return QT_OK;
}

qt_status event(qt_stream* stream, qt_done done, void* context) {
  LateStream* self = late(stream);
  self->submit([=] {
    if (!self->closing) std::this_thread::sleep_for(kDelay);
    done(context, static_cast<qt_status>(self->failed.load()));
  });
  return QT_OK;
}

qt_status operate(qt_stream* stream, int op, const void* args) {
  LateStream* self = late(stream);
  auto arguments = std::make_shared<Arguments>(op, args);
  self->submit([self, op, arguments] {
    if (self->closing) return;
    qt_status status = op_function(self->inner, op)(self->stream, arguments->slots);
    self->inner->operation_done(self->stream);
    if (status != QT_OK) self->failed.store(status);
  });
  return QT_OK;
}

#define OP(name) \
  qt_status late_##name(qt_stream* stream, const qt_##name##_args* args) { return operate(stream, OP_##name, args); }
#include "each_op.h"

const qt_backend* make_table() {
  auto* table = new qt_backend(*inner_backend());
  table->name = "cpu-late";
  table->open = open;
  table->close = close;
  table->allocate = allocate;
  table->release = release;
  table->memory_info = [](qt_stream* stream) { return late(stream)->inner->memory_info(late(stream)->stream); };
  table->upload = copy;
  table->download = copy;
  table->event = event;
  table->operation_done = nullptr;
  table->sticky_status = [](qt_stream* stream) { return static_cast<qt_status>(late(stream)->failed.load()); };
#define OP(name) table->name = late_##name;
#include "each_op.h"
  return table;
}

}  // namespace

const qt_backend* late_backend(std::string* error) {
  if (!test_devices()) {
    *error = "cpu-late is for tests and needs QUANTUNE_TEST_DEVICES=1";
    return nullptr;
  }
  if (!cpu_backend(error)) return nullptr;
  static const qt_backend* table = make_table();
  return table;
}

}  // namespace quantune
