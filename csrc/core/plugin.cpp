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

struct Plugin {
  const qt_backend* backend;
  std::string error;
};

Plugin load(const std::string& name, const std::string& folder) {
  std::string path = folder + "/quantune-" + name + kSuffix, reason;
  void* library = os::open_library(path, &reason);
  if (!library) return {nullptr, "the plugin could not be opened: " + reason};
  auto entry = reinterpret_cast<const qt_backend* (*)(uint32_t)>(os::library_symbol(library, "quantune_backend"));
  if (!entry) return {nullptr, path + " is not a quantune plugin: it has no quantune_backend"};
  const qt_backend* backend = entry(QT_ABI_VERSION);
  if (!backend) return {nullptr, path + " refuses this addon's ABI version " + std::to_string(QT_ABI_VERSION)};
  if (backend->abi_version != QT_ABI_VERSION) {
    return {nullptr, path + " has ABI version " + std::to_string(backend->abi_version) + ", this addon has " +
                         std::to_string(QT_ABI_VERSION) + ": build both from one checkout"};
  }
  return {backend, ""};
}

}  // namespace

const qt_backend* plugin_backend(const std::string& name, const std::string& folder, std::string* error) {
  static std::mutex* mutex = new std::mutex;
  static auto* plugins = new std::map<std::string, Plugin>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::string key = folder + "/" + name;
  auto found = plugins->find(key);
  if (found == plugins->end()) found = plugins->emplace(key, load(name, folder)).first;
  *error = found->second.error;
  return found->second.backend;
}

}  // namespace quantune
