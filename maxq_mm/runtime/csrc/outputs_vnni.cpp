// Compiled with -mavx512vbmi and -mavx512vnni, too; see pixels_avx2.cpp. Without any of them 16 lanes
// are emulated.
#define LANES 16
#define INT8
#define KERNELS kOutputsVnni
#include "outputs_kernels.h"
