// The addon's exports; types/native.d.ts is their typed surface.
#include <napi.h>

#include "../core/allocator.h"
#include "../core/backends.h"
#include "../core/dtype.h"
#include "../core/op_table.h"
#include "../core/os.h"
#include "../core/protocol.h"
#include "../core/thread_pool.h"
#include "device_binding.h"

namespace quantune {
namespace {

Napi::Array describe_ops(Napi::Env env) {
  Napi::Array ops = Napi::Array::New(env, kOps);
  for (uint32_t i = 0; i < kOps; i++) {
    const OpInfo& info = op_table[i];
    Napi::Object op = Napi::Object::New(env);
    Napi::Array operands = Napi::Array::New(env, static_cast<size_t>(info.operands));
    for (uint32_t j = 0; j < static_cast<uint32_t>(info.operands); j++) {
      Napi::Object operand = Napi::Object::New(env);
      operand.Set("name", info.names[j]);
      operand.Set("kind", operand_kind_name(info.kinds[j]));
      operands.Set(j, operand);
    }
    op.Set("name", info.name);
    op.Set("operands", operands);
    ops.Set(i, op);
  }
  return ops;
}

Napi::Object describe_protocol(Napi::Env env) {
  Napi::Object protocol = Napi::Object::New(env);
  auto set = [&](const char* name, int32_t value) { protocol.Set(name, value); };
  set("pageWords", kPageWords);
  set("opcodeBits", kOpcodeBits);
  set("firstOp", kFirstOp);
  set("slotBits", kSlotBits);
  set("controlTail", kControlTail);
  set("controlHead", kControlHead);
  set("controlSleeping", kControlSleeping);
  set("controlWords", kControlWords);
  set("nextPage", kNextPage);
  set("create", kCreate);
  set("view", kView);
  set("release", kRelease);
  set("write", kWrite);
  set("writeFile", kWriteFile);
  set("read", kRead);
  set("event", kEvent);
  set("site", kSite);
  set("recordBegin", kRecordBegin);
  set("recordEnd", kRecordEnd);
  set("replay", kReplay);
  set("releaseProgram", kReleaseProgram);
  set("forgetFile", kForgetFile);
  return protocol;
}

Napi::Array names(Napi::Env env, int32_t count, const char* (*name)(int32_t)) {
  Napi::Array result = Napi::Array::New(env, static_cast<size_t>(count));
  for (int32_t i = 0; i < count; i++) result.Set(static_cast<uint32_t>(i), name(i));
  return result;
}

Napi::Value describe(const Napi::CallbackInfo& info) {
  std::string error;
  std::string text = describe_plugin(info[0].ToString().Utf8Value(), info[1].ToString().Utf8Value(), &error);
  if (text.empty()) throw Napi::Error::New(info.Env(), error);
  return Napi::String::New(info.Env(), text);
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("abiVersion", QT_ABI_VERSION);
  exports.Set("ops", describe_ops(env));
  exports.Set("protocol", describe_protocol(env));
  exports.Set("dtypes", names(env, kDtypes, dtype_name));
  exports.Set("purposes", names(env, kPurposes, purpose_name));
  exports.Set("openDevice", Napi::Function::New(env, open_device, "openDevice"));
  exports.Set("describePlugin", Napi::Function::New(env, describe, "describePlugin"));
  exports.Set("usableCores",
              Napi::Function::New(
                  env, [](const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), os::usable_cores()); },
                  "usableCores"));
  exports.Set(
      "setThreads",
      Napi::Function::New(
          env, [](const Napi::CallbackInfo& info) { ThreadPool::set_threads(info[0].ToNumber().Int32Value()); }, "setThreads"));
  return exports;
}

}  // namespace
}  // namespace quantune

static Napi::Object Init(Napi::Env env, Napi::Object exports) { return quantune::init(env, exports); }
NODE_API_MODULE(quantune, Init)
