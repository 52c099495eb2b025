// Compiled with -mavx512f and the like; see pixels_avx2.cpp.
#define LANES 16
#define KERNELS kOutputsAvx512
#include "outputs_kernels.h"
