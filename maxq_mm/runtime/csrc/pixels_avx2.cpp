// Compiled with -mavx2 -mfma. All of it is in an unnamed namespace and nothing of the standard
// library's templates is used: what the linker shares must run on any processor.
#define LANES 8
#define KERNELS kPixelsAvx2
#include "pixels_kernels.h"
