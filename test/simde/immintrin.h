// What the test build -DQUANTUNE_SIMDE=ON (CMakeLists.txt) finds before the compiler's own immintrin.h: the AVX-512 variants
// are made of SIMDe's functions, which use the instructions that the compiler was given and do without the others.
#if defined(QT_INSIDE_SIMDE)
#include_next <immintrin.h>
#elif !defined(QT_SIMDE_IMMINTRIN)
#define QT_SIMDE_IMMINTRIN
#define QT_INSIDE_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#undef QT_INSIDE_SIMDE
#include "missing.h"
#endif
