#pragma once
#include <napi.h>

namespace quantune {

// openDevice(name, pluginFolder, control, firstPage, onComplete): see types/native.d.ts.
Napi::Value open_device(const Napi::CallbackInfo& info);

}  // namespace quantune
