#include <map>
#include <mutex>

#include "backends.h"
#include "os.h"

namespace quantune {
namespace {

#if defined(_WIN32)
constexpr const char* kSuffix = ".dll";
#else
constexpr const char* kSuffix = ".so";
#endif

using Describe = int64_t (*)(char* text, int64_t capacity);

struct Plugin {
  const qt_backend* backend;
  std::string error;
  Describe describe;
};

Plugin load(const std::string& name, const std::string& folder) {
  std::string path = folder + "/quantune-" + name + kSuffix, reason;
  void* library = os::open_library(path, &reason);
  if (!library) return {nullptr, "the plugin could not be opened: " + reason, nullptr};
  auto entry = reinterpret_cast<const qt_backend* (*)(uint32_t)>(os::library_symbol(library, "quantune_backend"));
  if (!entry) return {nullptr, path + " is not a quantune plugin: it has no quantune_backend", nullptr};
  const qt_backend* backend = entry(QT_ABI_VERSION);
  if (!backend) return {nullptr, path + " refuses this addon's ABI version " + std::to_string(QT_ABI_VERSION), nullptr};
  if (backend->abi_version != QT_ABI_VERSION) {
    return {nullptr,
            path + " has ABI version " + std::to_string(backend->abi_version) + ", this addon has " +
                std::to_string(QT_ABI_VERSION) + ": build both from one checkout",
            nullptr};
  }
  return {backend, "", reinterpret_cast<Describe>(os::library_symbol(library, "quantune_describe"))};
}

// Opened once a process, whoever asks.
const Plugin& plugin(const std::string& name, const std::string& folder) {
  static std::mutex* mutex = new std::mutex;
  static auto* plugins = new std::map<std::string, Plugin>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::string key = folder + "/" + name;
  auto found = plugins->find(key);
  if (found == plugins->end()) found = plugins->emplace(key, load(name, folder)).first;
  return found->second;
}

}  // namespace

const qt_backend* plugin_backend(const std::string& name, const std::string& folder, std::string* error) {
  const Plugin& found = plugin(name, folder);
  *error = found.error;
  return found.backend;
}

std::string describe_plugin(const std::string& name, const std::string& folder, std::string* error) {
  const Plugin& found = plugin(name, folder);
  *error = found.error;
  if (!found.describe) {
    if (error->empty()) *error = "the plugin does not describe itself: build it and the addon from one checkout";
    return "";
  }
  std::string text(static_cast<size_t>(found.describe(nullptr, 0)) + 1, '\0');
  found.describe(&text[0], static_cast<int64_t>(text.size()));
  text.pop_back();
  return text;
}

}  // namespace quantune
