// Takes the place of CUDA's header when the kernels are compiled as C++: the language's extensions, the intrinsics and the part
// of the runtime that the backend uses. What a kernel needs and this lacks is added here.
#pragma once
#define QT_EMULATED 1

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../engine.h"
#include "../intrinsics.h"
#include "../math.h"
#include "../runtime.h"
#include "../vector_types.h"
