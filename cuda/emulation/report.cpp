// The emulation's options, and what it says about mistakes.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

#include "block.h"
#include "engine.h"

namespace quantune::cuda::emulation {
namespace {

std::mutex error_mutex;
std::string last_error, taken_error;

Options parse_options() {
  Options options;
  const char* text = std::getenv("QUANTUNE_EMULATION");
  std::string rest = text ? text : "";
  while (!rest.empty()) {
    size_t comma = rest.find(',');
    std::string word = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    size_t colon = word.find(':');
    std::string name = word.substr(0, colon), value = colon == std::string::npos ? "" : word.substr(colon + 1);
    if (name == "forward")
      options.schedule = Options::kForward;
    else if (name == "reverse")
      options.schedule = Options::kReverse;
    else if (name == "random")
      options.schedule = Options::kRandom;
    else if (name == "eager")
      options.async = Options::kEager;
    else if (name == "lazy")
      options.async = Options::kLazy;
    else if (name == "sometimes")
      options.async = Options::kSometimes;
    else if (name == "seed")
      options.seed = std::strtoull(value.c_str(), nullptr, 10);
    else if (name == "late")
      options.late_us = std::atoi(value.c_str());
    else if (name == "sm")
      options.compute = std::atoi(value.c_str());
    else if (name == "devices")
      options.devices = std::atoi(value.c_str());
    else if (name == "memory")
      options.memory_mib = std::atoi(value.c_str());
    else
      std::fprintf(stderr, "QUANTUNE_EMULATION: %s is not known\n", word.c_str());
  }
  return options;
}

}  // namespace

Options& options() {
  static Options instance = parse_options();
  return instance;
}

// "function at file:line" where the tools can tell, with what it is inlined into; else the offset in the library.
std::string describe_place(const void* address) {
  Dl_info info;
  if (!address || !dladdr(address, &info) || !info.dli_fname) return "an unknown place";
  char command[1024], line[512];
  size_t offset = static_cast<size_t>(static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase));
  std::snprintf(command, sizeof command, "addr2line -s -C -f -p -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset - 1);
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    for (int i = 0; i < 3 && std::fgets(line, sizeof line, pipe); i++) text += line;
    pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (!text.empty() && text.find("??") == std::string::npos) return text;
  std::snprintf(line, sizeof line, "%s+0x%zx", info.dli_fname, offset);
  return line;
}

void report_error(const char* text) {
  std::lock_guard<std::mutex> lock(error_mutex);
  if (last_error.empty()) last_error = text;
  if (!options().quiet) std::fprintf(stderr, "cuda-emulated: %s\n", text);
}

const char* last_kernel_error() {
  std::lock_guard<std::mutex> lock(error_mutex);
  taken_error = std::move(last_error);
  last_error.clear();
  return taken_error.c_str();
}

}  // namespace quantune::cuda::emulation
