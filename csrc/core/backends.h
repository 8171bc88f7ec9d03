// Where the core finds its backends.
#pragma once
#include <string>

#include "abi.h"

namespace quantune {

// The CPU's table for the variant this CPU can run, or the one QUANTUNE_CPU names. Null: `error` says why not.
const qt_backend* cpu_backend(std::string* error);
// The CPU's, completing late from another thread: for tests.
const qt_backend* late_backend(std::string* error);
// A shared library beside the addon. Opened once a process, never unloaded.
const qt_backend* plugin_backend(const std::string& name, const std::string& folder, std::string* error);
// What the plugin says about its driver and devices, as JSON; empty: `error` says why not. A broken driver may take the process
// down: ask in a child process first.
std::string describe_plugin(const std::string& name, const std::string& folder, std::string* error);

// The devices of tests exist only where QUANTUNE_TEST_DEVICES is 1.
bool test_devices();
// "cpu", "cpu-late", "cuda", "cuda:1", "cuda-emulated".
const qt_backend* find_backend(const std::string& device, const std::string& folder, int32_t* index, std::string* error);

}  // namespace quantune
