// Compiled with -mamx-int8, and what outputs_vnni.cpp is; see pixels_avx2.cpp.
#define LANES 16
#define INT8
#define AMX
#define KERNELS kOutputsAmx
#include "outputs_kernels.h"
