// Compiled with -mavx512f and the like; see avx2.cpp. Without them it emulates 16 lanes (tests).
#define LANES 16
#define KERNELS kAvx512
#include "pixels.h"
