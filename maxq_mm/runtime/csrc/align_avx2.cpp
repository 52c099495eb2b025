// Compiled with -mavx2 -mfma; see pixels_avx2.cpp.
#define LANES 8
#define KERNELS kRegionsAvx2
#include "align.h"
