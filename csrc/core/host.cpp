#include "host.h"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>

#include "late_failures.h"

namespace quantune {
namespace {

// Never destroyed: a queue's thread may still run when static destructors do.
struct Sink {
  std::string* message;
  LateFailures* late;
};
struct Sinks {
  std::mutex mutex;
  std::map<qt_stream*, Sink> sinks;
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
  if (found != registry().sinks.end() && found->second.message->empty()) *found->second.message = text;
  return status;
}

extern "C" void quantune_refused(qt_stream* stream, int64_t operation, const char* message) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto found = registry().sinks.find(stream);
  if (found != registry().sinks.end() && found->second.late) found->second.late->refused(operation, message);
}

void remember_stream(qt_stream* stream, std::string* sink, LateFailures* late) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().sinks[stream] = {sink, late};
}

void forget_stream(qt_stream* stream) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().sinks.erase(stream);
}

}  // namespace quantune
