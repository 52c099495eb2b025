// Compiled with -mavx512f and the like; see pixels_avx2.cpp. Without them 16 lanes are emulated.
#define LANES 16
#define KERNELS kPixelsAvx512
#include "pixels_kernels.h"
