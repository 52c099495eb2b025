// Compiled with -mavx2 -mfma; nothing here may be inlined elsewhere, so all of it is in an unnamed
// namespace and nothing of the standard library's templates is used.
#define LANES 8
#define KERNELS kAvx2
#include "pixels.h"
