#include "backends.h"

#include <cstdlib>
#include <cstring>

namespace quantune {

bool test_devices() {
  const char* enabled = std::getenv("QUANTUNE_TEST_DEVICES");
  return enabled && std::strcmp(enabled, "1") == 0;
}

const qt_backend* find_backend(const std::string& device, const std::string& folder, int32_t* index, std::string* error) {
  *index = 0;
  std::string name = device;
  size_t colon = device.find(':');
  if (colon != std::string::npos) {
    name = device.substr(0, colon);
    std::string digits = device.substr(colon + 1);
    if (digits.empty() || digits.size() > 4 || digits.find_first_not_of("0123456789") != std::string::npos) {
      *error = "the device's index must be a number";
      return nullptr;
    }
    *index = std::atoi(digits.c_str());
  }
  if (name == "cpu" && colon == std::string::npos) return cpu_backend(error);
  if (name == "cpu-late" && colon == std::string::npos) return late_backend(error);
  if (name == "cuda") return plugin_backend(name, folder, error);
  if (name == "cuda-emulated") {
    if (!test_devices()) {
      *error = "cuda-emulated is for tests and needs QUANTUNE_TEST_DEVICES=1";
      return nullptr;
    }
    return plugin_backend(name, folder, error);
  }
  *error = "there is no such device; known are auto, cpu, cuda and cuda:<index>";
  return nullptr;
}

}  // namespace quantune
