// A device: its backend's stream, its memory, and the in-order queue with the thread that runs it.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "allocator.h"
#include "host.h"
#include "late_failures.h"
#include "os.h"
#include "protocol.h"
#include "storage.h"

namespace quantune {

// Data on its way to the device.
struct Staged {
  std::unique_ptr<uint8_t[]> data;
  int64_t bytes = 0;
  int32_t dtype = QT_FLOAT32;
};

// A promised copy to the host. The destination stays valid until the request is completed or the device closed.
struct ReadRequest {
  void* destination = nullptr;
  int64_t bytes = 0;
  int32_t dtype = QT_FLOAT32;
};

struct Completion {
  int32_t request;
  FailurePtr failure;
};

struct MappedFile {
  os::FileMap map{nullptr, 0, -1};
  std::string path;
  ~MappedFile() {
    if (map.handle >= 0) os::unmap_file(map);
  }
};

class Device {
 public:
  // `notify` is called from any thread when completions wait to be taken.
  Device(const qt_backend* backend, int32_t index, std::function<void()> notify);
  ~Device() { stop(); }

  // ---- called by the thread that owns the environment ----
  void start(int32_t* control);  // request 0 completes when the backend is open, or says why not
  void add_page(int32_t page, int32_t* words);
  void wake();
  void stage(int32_t id, Staged staged);
  void add_file(int32_t id, std::shared_ptr<MappedFile> file);
  void add_read(int32_t request, ReadRequest read);
  std::vector<Completion> take_completions();
  // Gives up what is queued, ends the thread, closes the backend. No completion is reported any more.
  void stop();
  const qt_backend* backend() const { return backend_; }
  const MemoryCounters& counters() const { return *counters_; }
  void reset_peak() { counters_->reset_peak(); }

 private:
  friend struct Transfer;

  // ---- device.cpp: the thread ----
  void run();
  bool open_backend();
  void wait_for_work(uint32_t head);
  void complete(int32_t request, FailurePtr failure);
  void close_backend();

  // ---- records.cpp: all but operations ----
  bool process(const int32_t* record, int32_t opcode, int32_t words);
  void create(const int32_t* record, int32_t words);
  void view(const int32_t* record, int32_t words);
  void release(int32_t handle);
  void write(int32_t handle, int32_t staged);
  void write_file(int32_t handle, int32_t file, int64_t offset);
  void upload(Slot* slot, const void* from, std::function<void()> finished);
  void read(int32_t handle, int32_t request);
  void event(int32_t request);
  Slot* find(int32_t handle);
  Slot* claim(int32_t handle);
  void drop(Storage* storage);
  FailurePtr failure(qt_status status, std::string message, std::string op = "");
  bool allocate(Storage* storage);

  // ---- execute.cpp: operations and programs ----
  void operation(int op, const int32_t* record, int32_t words);
  bool decode(Call* call, const int32_t* record, int32_t words, std::string* problem);
  void execute(Call& call);
  void poison_outputs(const Call& call, const FailurePtr& failure, bool skipped);
  void record_begin(int32_t program);
  void record_end(int32_t program);
  void replay(int32_t program);
  void release_program(int32_t program);
  FailurePtr device_lost();
  void apply_late_failures();

  const qt_backend* backend_;
  int32_t index_;
  std::function<void()> notify_;
  int32_t stop_flag_ = 0;
  qt_host host_;
  qt_stream* stream_ = nullptr;
  std::unique_ptr<Allocator> allocator_;
  std::unique_ptr<MemoryCounters> counters_;
  LateFailures late_;

  std::atomic<uint32_t>* control_ = nullptr;
  std::unique_ptr<std::atomic<int32_t*>[]> pages_;
  std::atomic<uint32_t> wakes_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;

  std::mutex shared_;  // guards what both threads touch:
  std::unordered_map<int32_t, Staged> staged_;
  std::unordered_map<int32_t, std::shared_ptr<MappedFile>> files_;
  std::unordered_map<int32_t, ReadRequest> reads_;
  std::vector<Completion> completions_;

  // The queue's thread alone:
  std::vector<Slot> slots_;
  std::unordered_map<int32_t, std::unique_ptr<Program>> programs_;
  Program* recording_ = nullptr;
  Call call_;
  int32_t site_ = 0;
  uint64_t storages_ = 0;
  std::string message_;
  FailurePtr lost_;
};

}  // namespace quantune
