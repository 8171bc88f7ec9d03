// The queue's records that are not operations: tensors come, go, and are copied.
#include <cstring>
#include <new>

#include "device.h"
#include "dtype.h"
#include "op_table.h"
#include "quant_layout.h"

namespace quantune {
namespace {

int64_t i64_at(const int32_t* words) {
  int64_t value;
  std::memcpy(&value, words, 8);
  return value;
}

// Reads a dimension list; false when it is not a shape.
bool read_shape(const int32_t* words, int32_t available, qt_tensor* tensor) {
  int32_t ndim = words[0];
  if (ndim < 0 || ndim > QT_MAX_DIMS || available < ndim + 1) return false;
  tensor->ndim = ndim;
  tensor->elements = 1;
  for (int32_t i = 0; i < ndim; i++) {
    tensor->shape[i] = words[i + 1];
    if (words[i + 1] < 0) return false;
    tensor->elements *= words[i + 1];
    if (tensor->elements > (int64_t{1} << 46)) return false;
  }
  return true;
}

}  // namespace

// A copy in flight; deletes itself when it has completed.
struct Transfer {
  explicit Transfer(Device* owner) : device(owner) {}

  Device* device;
  int32_t request = 0;
  ReadRequest read;
  std::unique_ptr<uint8_t[]> raw;  // when the data must be converted on arrival
  int32_t raw_dtype = 0;
  int64_t elements = 0;
  int32_t site = 0;
  uint64_t position = 0;  // in the log of what may yet fail
  std::function<void()> finished;

  void finish(qt_status status) {
    if (finished) finished();
    if (request) {
      FailurePtr failure = device->late_.finished(request, position);
      if (status != QT_OK) failure = std::make_shared<Failure>(Failure{status, "the copy to the host failed", "", site});
      if (!failure && raw) convert_elements(read.destination, read.dtype, raw.get(), raw_dtype, elements);
      device->complete(request, std::move(failure));
    }
    delete this;
  }
  static void done(void* context, qt_status status) { static_cast<Transfer*>(context)->finish(status); }
};

FailurePtr Device::failure(qt_status status, std::string message, std::string op) {
  return std::make_shared<Failure>(Failure{status, std::move(message), std::move(op), site_});
}

bool Device::process(const int32_t* r, int32_t opcode, int32_t words) {
  if (opcode >= kFirstOp) {
    if (opcode - kFirstOp >= kOps) return false;
    operation(opcode - kFirstOp, r, words);
    return true;
  }
  static constexpr int32_t least_words[] = {0, 2, 6, 6, 2, 3, 5, 3, 2, 2, 2, 2, 2, 2, 2};
  if (opcode <= kNextPage || opcode > kForgetFile || words < least_words[opcode]) return false;
  switch (opcode) {
    case kCreate:
      create(r, words);
      break;
    case kView:
      view(r, words);
      break;
    case kRelease:
      release(r[1]);
      break;
    case kWrite:
      write(r[1], r[2]);
      break;
    case kWriteFile:
      write_file(r[1], r[2], i64_at(r + 3));
      break;
    case kRead:
      read(r[1], r[2]);
      break;
    case kEvent:
      event(r[1]);
      break;
    case kSite:
      site_ = r[1];
      break;
    case kRecordBegin:
      record_begin(r[1]);
      break;
    case kRecordEnd:
      record_end(r[1]);
      break;
    case kReplay:
      replay(r[1]);
      break;
    case kReleaseProgram:
      release_program(r[1]);
      break;
    case kForgetFile: {
      std::lock_guard<std::mutex> lock(shared_);
      files_.erase(r[1]);
      break;
    }
  }
  return true;
}

Slot* Device::find(int32_t handle) {
  size_t index = static_cast<size_t>(handle & ((1 << kSlotBits) - 1));
  return handle != 0 && index < slots_.size() && slots_[index].handle == handle ? &slots_[index] : nullptr;
}

Slot* Device::claim(int32_t handle) {
  size_t index = static_cast<size_t>(handle & ((1 << kSlotBits) - 1));
  if (index >= slots_.size()) slots_.resize(index + 1 > slots_.size() * 2 ? index + 1 : slots_.size() * 2);
  Slot* slot = &slots_[index];
  if (slot->handle) drop(slot->storage);  // JavaScript never does this; a leak would be worse than a wrong release
  *slot = Slot{};
  slot->handle = handle;
  return slot;
}

bool Device::allocate(Storage* storage) {
  if (recording_) {
    auto reusable = recording_->reusable.lower_bound(storage->bytes);
    if (reusable != recording_->reusable.end() && reusable->first <= storage->bytes + storage->bytes / 4) {
      storage->block = reusable->second;
      recording_->reusable.erase(reusable);
      return true;
    }
  }
  storage->block = allocator_->allocate(storage->bytes < 1 ? 1 : storage->bytes, storage->purpose);
  if (!storage->block.data) return false;
  if (recording_) recording_->blocks.push_back({storage->block, storage->purpose, storage->bytes});
  counters_->add(storage->purpose, storage->bytes);
  return true;
}

void Device::create(const int32_t* r, int32_t words) {
  int32_t dtype = r[2], purpose = r[3], quantization = r[4];
  Slot* slot = claim(r[1]);
  Storage* storage = slot->storage = new Storage;
  storage->id = ++storages_;
  qt_tensor& tensor = slot->tensor;
  storage->purpose = purpose >= 0 && purpose < kPurposes ? purpose : kOther;
  storage->program = recording_;
  if (recording_) recording_->created.push_back(storage);
  if (dtype < 0 || dtype >= kDtypes || !read_shape(r + 5, words - 5, &tensor) || (dtype == QT_LLM_INT8 && tensor.ndim != 2)) {
    storage->poison = failure(QT_INVALID_ARGUMENT, "not a shape or dtype of a tensor");
    return;
  }
  tensor.dtype = dtype;
  if (is_quantized(dtype)) {
    if (dtype == QT_LLM_INT8) {
      int32_t bits = quantization & INT32_MAX;
      float threshold;
      std::memcpy(&threshold, &bits, 4);
      storage->quant = int8_layout(tensor.shape[0], tensor.shape[1], quantization < 0, threshold);
    } else {
      int32_t block_size = quantization & 0xffff;
      storage->quant = four_bit_layout(tensor.elements, block_size == 128 ? 128 : 64, quantization >> 16 != 0);
    }
    storage->bytes = storage->quant.bytes;
    tensor.quant = &storage->quant;
  } else {
    storage->bytes = tensor.elements * dtype_bytes(dtype);
  }
  if (!allocate(storage)) {
    std::string message = "not enough memory for " + std::to_string(storage->bytes) + " bytes of " +
                          purpose_name(storage->purpose) + ": " + std::to_string(backend_->memory_info(stream_).free_bytes) +
                          " bytes are free";
    storage->poison = failure(QT_OUT_OF_MEMORY, message);
    return;
  }
  tensor.data = storage->block.data;
}

void Device::view(const int32_t* r, int32_t words) {
  const Slot* base = find(r[2]);
  Slot source = base ? *base : Slot{};
  Slot* slot = claim(r[1]);
  if (!base) {
    slot->storage = new Storage;
    slot->storage->poison = failure(QT_INVALID_ARGUMENT, "a view of a tensor that is gone");
    return;
  }
  slot->tensor = source.tensor;
  slot->storage = source.storage;
  slot->storage->references++;
  int64_t first = i64_at(r + 3), base_elements = source.tensor.elements;
  bool fits = read_shape(r + 5, words - 5, &slot->tensor) && first >= 0 && first + slot->tensor.elements <= base_elements;
  if (fits && is_quantized(source.tensor.dtype)) fits = first == 0 && slot->tensor.elements == base_elements;
  if (!fits) {
    drop(slot->storage);
    slot->storage = new Storage;
    slot->storage->poison = failure(QT_INVALID_ARGUMENT, "a view reaches beyond its tensor");
    slot->tensor.data = nullptr;
  } else if (first > 0 && slot->tensor.data) {
    slot->tensor.data = static_cast<uint8_t*>(slot->tensor.data) + first * dtype_bytes(slot->tensor.dtype);
  }
}

void Device::drop(Storage* storage) {
  if (--storage->references > 0) return;
  if (storage->program) {  // which frees it; until its recording ends, what it creates next may have the memory
    if (storage->program == recording_ && storage->block.data)
      recording_->reusable.emplace(storage->block.bytes, storage->block);
    return;
  }
  if (storage->block.data) {
    counters_->add(storage->purpose, -storage->bytes);
    allocator_->release(storage->block);
  }
  delete storage;
}

void Device::release(int32_t handle) {
  Slot* slot = find(handle);
  if (!slot) return;
  Storage* storage = slot->storage;
  *slot = Slot{};
  drop(storage);
}

void Device::upload(Slot* slot, const void* from, std::function<void()> finished) {
  int64_t bytes = slot->tensor.elements * dtype_bytes(slot->tensor.dtype);
  auto* transfer = new Transfer(this);
  transfer->finished = std::move(finished);
  qt_status status =
      lost_ ? lost_->status : backend_->upload(stream_, slot->tensor.data, from, bytes, Transfer::done, transfer);
  if (status != QT_OK) {
    transfer->finish(status);
    slot->storage->poison = lost_ ? lost_ : failure(status, "the copy to the device failed");
  } else if (slot->storage->bytes == bytes) {
    slot->storage->poison = nullptr;
    late_.overwritten(slot->storage);
  }
}

void Device::write(int32_t handle, int32_t id) {
  Staged staged;
  {
    std::lock_guard<std::mutex> lock(shared_);
    auto found = staged_.find(id);
    if (found == staged_.end()) return;
    staged = std::move(found->second);
    staged_.erase(found);
  }
  Slot* slot = find(handle);
  if (!slot || !slot->tensor.data) return;
  const qt_tensor& tensor = slot->tensor;
  int64_t from_bytes = tensor.elements * dtype_bytes(staged.dtype);
  if (is_quantized(tensor.dtype) || from_bytes != staged.bytes) {
    slot->storage->poison = failure(QT_INVALID_ARGUMENT, "the data written does not fit the tensor");
    return;
  }
  if (staged.dtype != tensor.dtype) {
    std::unique_ptr<uint8_t[]> converted(new (std::nothrow)
                                             uint8_t[static_cast<size_t>(tensor.elements * dtype_bytes(tensor.dtype))]);
    if (!converted) {
      slot->storage->poison = failure(QT_OUT_OF_MEMORY, "not enough memory to convert the data written");
      return;
    }
    if (!convert_elements(converted.get(), tensor.dtype, staged.data.get(), staged.dtype, tensor.elements)) {
      slot->storage->poison = failure(
          QT_INVALID_ARGUMENT, std::string("cannot write ") + dtype_name(staged.dtype) + " into " + dtype_name(tensor.dtype));
      return;
    }
    staged.data = std::move(converted);
  }
  std::shared_ptr<uint8_t[]> data(staged.data.release());
  upload(slot, data.get(), [data] {});
}

void Device::write_file(int32_t handle, int32_t id, int64_t offset) {
  std::shared_ptr<MappedFile> file;
  {
    std::lock_guard<std::mutex> lock(shared_);
    auto found = files_.find(id);
    if (found != files_.end()) file = found->second;
  }
  Slot* slot = find(handle);
  if (!slot || !slot->tensor.data) return;
  int64_t bytes = slot->tensor.elements * dtype_bytes(slot->tensor.dtype);
  if (!file || is_quantized(slot->tensor.dtype) || offset < 0 || offset > file->map.bytes - bytes) {
    slot->storage->poison = failure(QT_INVALID_ARGUMENT, "the tensor reaches beyond the end of the file");
    return;
  }
  if (os::current_size(file->map) < offset + bytes) {
    slot->storage->poison = failure(QT_INVALID_ARGUMENT, file->path + " was cut short while it was being read");
    return;
  }
  upload(slot, file->map.data + offset, [file, offset, bytes] { os::forget_range(file->map, offset, bytes); });
}

void Device::read(int32_t handle, int32_t request) {
  ReadRequest read;
  {
    std::lock_guard<std::mutex> lock(shared_);
    auto found = reads_.find(request);
    if (found == reads_.end()) return;
    read = found->second;
    reads_.erase(found);
  }
  Slot* slot = find(handle);
  if (!slot) return complete(request, failure(QT_INVALID_ARGUMENT, "the tensor is gone"));
  if (late_.news()) apply_late_failures();
  if (lost_ || slot->storage->poison) return complete(request, lost_ ? lost_ : slot->storage->poison);
  const qt_tensor& tensor = slot->tensor;
  int64_t bytes = tensor.elements * dtype_bytes(tensor.dtype);
  bool converts = read.dtype != tensor.dtype;
  bool can = !is_quantized(tensor.dtype) && read.bytes == tensor.elements * dtype_bytes(read.dtype) &&
             (!converts || (read.dtype == QT_FLOAT32 && is_float(tensor.dtype)));
  if (!can) return complete(request, failure(QT_INVALID_ARGUMENT, "the destination of a read does not fit the tensor"));
  auto* transfer = new Transfer(this);
  transfer->request = request;
  transfer->read = read;
  transfer->raw_dtype = tensor.dtype;
  transfer->elements = tensor.elements;
  transfer->site = site_;
  if (converts) transfer->raw.reset(new (std::nothrow) uint8_t[static_cast<size_t>(bytes)]);
  if (converts && !transfer->raw) {
    delete transfer;
    return complete(request, failure(QT_OUT_OF_MEMORY, "not enough memory to convert the data read"));
  }
  void* to = converts ? transfer->raw.get() : read.destination;
  transfer->position = late_.reading(request, slot->storage);
  qt_status status = backend_->download(stream_, to, tensor.data, bytes, Transfer::done, transfer);
  if (status != QT_OK) transfer->finish(status);
}

void Device::event(int32_t request) {
  if (lost_) return complete(request, lost_);
  auto* transfer = new Transfer(this);
  transfer->request = request;
  transfer->site = site_;
  transfer->position = late_.position();
  qt_status status = backend_->event(stream_, Transfer::done, transfer);
  if (status != QT_OK) transfer->finish(status);
}

}  // namespace quantune
