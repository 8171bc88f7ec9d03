// One device of one environment: its queue, and the way back to JavaScript for what has completed.
#include "device_binding.h"

#include <cstring>
#include <new>

#include "../core/backends.h"
#include "../core/device.h"

namespace quantune {
namespace {

class DeviceBinding {
 public:
  DeviceBinding(Napi::Env env, const qt_backend* backend, int32_t index, Napi::Function on_complete)
      : env_(env), device_(backend, index, [this] { notify(); }) {
    napi_value name = Napi::String::New(env, "quantune");
    napi_status status =
        napi_create_threadsafe_function(env, on_complete, nullptr, name, 0, 1, nullptr, nullptr, this, settle, &tsfn_);
    if (status != napi_ok) throw Napi::Error::New(env, "the completion callback could not be made");
    napi_unref_threadsafe_function(env, tsfn_);
  }

  // Cleanup hooks run last-in first-out. This one is added after the thread-safe function added its own, so the thread is
  // joined while that function still stands.
  void start(Napi::Int32Array control, Napi::Int32Array page) {
    retain(control);
    add_page(0, page);
    expect();
    device_.start(control.Data());
    napi_add_env_cleanup_hook(
        env_, [](void* self) { static_cast<DeviceBinding*>(self)->close(); }, this);
  }

  void add_page(int32_t id, Napi::Int32Array page) {
    if (id < 0 || id >= kMostPages || page.ElementLength() != static_cast<size_t>(kPageWords)) {
      throw Napi::RangeError::New(env_, "too many operations are queued: await something now and then");
    }
    retain(page);
    device_.add_page(id, page.Data());
  }

  // A completion is on its way: the event loop stays alive until it has arrived.
  void expect() {
    if (expected_++ == 0) napi_ref_threadsafe_function(env_, tsfn_);
  }

  Device& device() { return device_; }

 private:
  void retain(Napi::Value value) {
    napi_ref reference;  // never deleted: what the queue's thread reads lives as long as the environment
    napi_create_reference(env_, value, 1, &reference);
  }

  void notify() { napi_call_threadsafe_function(tsfn_, nullptr, napi_tsfn_nonblocking); }

  static void settle(napi_env env, napi_value on_complete, void* context, void*) {
    if (!env) return;  // the environment is being torn down
    auto* self = static_cast<DeviceBinding*>(context);
    for (const Completion& completion : self->device_.take_completions()) {
      if (--self->expected_ == 0) napi_unref_threadsafe_function(env, self->tsfn_);
      napi_value arguments[5], undefined;
      size_t count = 1;
      if (napi_get_undefined(env, &undefined) != napi_ok) return;
      if (napi_create_int32(env, completion.request, &arguments[0]) != napi_ok) return;
      if (const Failure* failure = completion.failure.get()) {
        if (napi_create_int32(env, failure->status, &arguments[1]) != napi_ok) return;
        if (napi_create_string_utf8(env, failure->message.c_str(), failure->message.size(), &arguments[2]) != napi_ok) return;
        if (napi_create_string_utf8(env, failure->op.c_str(), failure->op.size(), &arguments[3]) != napi_ok) return;
        if (napi_create_int32(env, failure->site, &arguments[4]) != napi_ok) return;
        count = 5;
      }
      if (napi_call_function(env, undefined, on_complete, count, arguments, nullptr) != napi_ok) return;
    }
  }

  void close() {
    device_.stop();
    napi_release_threadsafe_function(tsfn_, napi_tsfn_abort);
  }

  Napi::Env env_;
  napi_threadsafe_function tsfn_ = nullptr;
  int expected_ = 0;
  Device device_;
};

DeviceBinding& binding_of(const Napi::CallbackInfo& info) { return *static_cast<DeviceBinding*>(info.Data()); }
int32_t int_at(const Napi::CallbackInfo& info, size_t index) { return info[index].ToNumber().Int32Value(); }

struct Bytes {
  uint8_t* data;
  size_t length;
};
Bytes bytes_at(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "a typed array is expected");
  auto array = info[index].As<Napi::TypedArray>();
  return {static_cast<uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset(), array.ByteLength()};
}

Napi::Int32Array words_at(const Napi::CallbackInfo& info, size_t index) {
  if (!info[index].IsTypedArray() || info[index].As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
    throw Napi::TypeError::New(info.Env(), "an Int32Array is expected");
  }
  return info[index].As<Napi::Int32Array>();
}

void add_page(const Napi::CallbackInfo& info) { binding_of(info).add_page(int_at(info, 0), words_at(info, 1)); }
void wake(const Napi::CallbackInfo& info) { binding_of(info).device().wake(); }

void stage(const Napi::CallbackInfo& info) {
  Bytes bytes = bytes_at(info, 1);
  Staged staged;
  staged.data.reset(new (std::nothrow) uint8_t[bytes.length]);
  if (!staged.data) throw Napi::Error::New(info.Env(), "not enough memory to copy the data");
  staged.bytes = static_cast<int64_t>(bytes.length);
  staged.dtype = int_at(info, 2);
  if (bytes.length) std::memcpy(staged.data.get(), bytes.data, bytes.length);
  binding_of(info).device().stage(int_at(info, 0), std::move(staged));
}

void expect_read(const Napi::CallbackInfo& info) {
  if (info[1].IsTypedArray()) {
    Bytes bytes = bytes_at(info, 1);
    binding_of(info).device().add_read(int_at(info, 0), {bytes.data, static_cast<int64_t>(bytes.length), int_at(info, 2)});
  }
  binding_of(info).expect();
}

Napi::Value open_file(const Napi::CallbackInfo& info) {
  auto file = std::make_shared<MappedFile>();
  std::string error;
  file->path = info[1].ToString().Utf8Value();
  if (!os::map_file(file->path, &file->map, &error)) {
    file->map.handle = -1;
    throw Napi::Error::New(info.Env(), error);
  }
  double bytes = static_cast<double>(file->map.bytes);
  binding_of(info).device().add_file(int_at(info, 0), std::move(file));
  return Napi::Number::New(info.Env(), bytes);
}

Napi::Value attention_plan_size(const Napi::CallbackInfo& info) {
  const qt_backend* backend = binding_of(info).device().backend();
  return Napi::Number::New(info.Env(), static_cast<double>(backend->attention_plan_size(int_at(info, 0), int_at(info, 1))));
}

// Current bytes by purpose, peaks by purpose, total, peak total, cached.
Napi::Value memory(const Napi::CallbackInfo& info) {
  const MemoryCounters& counters = binding_of(info).device().counters();
  Napi::Array result = Napi::Array::New(info.Env());
  uint32_t at = 0;
  auto push = [&](const std::atomic<int64_t>& value) { result.Set(at++, static_cast<double>(value.load())); };
  for (const auto& value : counters.current) push(value);
  for (const auto& value : counters.peak) push(value);
  push(counters.total);
  push(counters.peak_total);
  push(counters.cached);
  return result;
}

void reset_peak(const Napi::CallbackInfo& info) { binding_of(info).device().reset_peak(); }

}  // namespace

Napi::Value open_device(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int32_t index;
  std::string error;
  const qt_backend* backend = find_backend(info[0].ToString().Utf8Value(), info[1].ToString().Utf8Value(), &index, &error);
  if (!backend) throw Napi::Error::New(env, error);
  Napi::Int32Array control = words_at(info, 2), page = words_at(info, 3);
  if (control.ElementLength() < static_cast<size_t>(kControlWords))
    throw Napi::TypeError::New(env, "the control block is too small");
  // Lives as long as the process: the environment may end while other threads still know it.
  auto* binding = new DeviceBinding(env, backend, index, info[4].As<Napi::Function>());
  binding->start(control, page);

  Napi::Object object = Napi::Object::New(env);
  object.Set("variant", backend->variant);
  object.Set("addPage", Napi::Function::New(env, add_page, "addPage", binding));
  object.Set("wake", Napi::Function::New(env, wake, "wake", binding));
  object.Set("stage", Napi::Function::New(env, stage, "stage", binding));
  object.Set("expect", Napi::Function::New(env, expect_read, "expect", binding));
  object.Set("openFile", Napi::Function::New(env, open_file, "openFile", binding));
  object.Set("attentionPlanSize", Napi::Function::New(env, attention_plan_size, "attentionPlanSize", binding));
  object.Set("memory", Napi::Function::New(env, memory, "memory", binding));
  object.Set("resetPeak", Napi::Function::New(env, reset_peak, "resetPeak", binding));
  return object;
}

}  // namespace quantune
