#include "host.h"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>

namespace quantune {
namespace {

// Never destroyed: a queue's thread may still run when static destructors do.
struct Sinks {
  std::mutex mutex;
  std::map<qt_stream*, std::string*> sinks;
};
Sinks& registry() {
  static Sinks* instance = new Sinks;
  return *instance;
}

}  // namespace

extern "C" qt_status quantune_fail(qt_stream* stream, qt_status status, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto found = registry().sinks.find(stream);
  if (found != registry().sinks.end() && found->second->empty()) *found->second = text;
  return status;
}

void remember_stream(qt_stream* stream, std::string* sink) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().sinks[stream] = sink;
}

void forget_stream(qt_stream* stream) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().sinks.erase(stream);
}

}  // namespace quantune
