// Shared memory under emulation.
#pragma once
#include "engine.h"

#define QT_SHARED(type, name, count)                                                \
  static const char name##_declaration = 0;                                         \
  type* const name = static_cast<type*>(::quantune::cuda::emulation::static_shared( \
      &name##_declaration, sizeof(type) * (count), alignof(type) < 16 ? 16 : alignof(type)))

namespace quantune::cuda {

constexpr size_t kRedZone = emulation::kRedZoneBytes;
inline char* dynamic_shared_base() { return emulation::dynamic_shared(); }
inline void mark_red_zone(char* zone) { emulation::mark_red_zone(zone); }

}  // namespace quantune::cuda
