// Compiled with -mavx512f and the like; see outputs_avx512.cpp.
#define LANES 16
#define KERNELS kRegionsAvx512
#include "align.h"
