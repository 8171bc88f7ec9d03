// What the core gives a backend, and how a failed operation says why.
#pragma once
#include <memory>
#include <string>

#include "abi.h"

namespace quantune {

struct Failure {
  qt_status status;
  std::string message;
  std::string op;  // empty: not an operation
  int32_t site;    // the public call that queued it, 0: unknown
};
using FailurePtr = std::shared_ptr<const Failure>;

class LateFailures;

extern "C" qt_status quantune_fail(qt_stream* stream, qt_status status, const char* format, ...);
extern "C" void quantune_refused(qt_stream* stream, int64_t operation, const char* message);

// Operations that run on `stream` leave their message in `sink` (the first one wins), and what the device finds out later in
// `late`, until `forget_stream`.
void remember_stream(qt_stream* stream, std::string* sink, LateFailures* late);
void forget_stream(qt_stream* stream);

}  // namespace quantune
