// The operators of a set whose lanes are output channels; with INT8, those of bytes, too; with AMX,
// dense ones of those by matrix instructions.
#pragma once

#include "outputs.h"
#include "row_operators.h"
#if defined(INT8)
#include "outputs_int8.h"
#endif
#if defined(AMX)
#include "outputs_amx.h"
#endif

namespace maxq {
namespace {

// Calls use(a null pointer to the kernel of a layer).
template <typename Use>
auto with_kernel(const Op& op, const Use& use) {
  bool is_dense = op.kind == kDenseLayer;
#if defined(INT8)
  if (op.in.element == 1) {
    is_dense = is_dense || is_narrow(op);
#if defined(AMX)
    if (is_dense) return use(static_cast<Matrix*>(nullptr));
#endif
    return is_dense ? use(static_cast<Int8<true>*>(nullptr))
                    : use(static_cast<Int8<false>*>(nullptr));
  }
#endif
  if (is_dense && op.out.c <= Lanes::kSize) return use(static_cast<Floats<kDense, 1>*>(nullptr));
  if (is_dense) return use(static_cast<Floats<kDense>*>(nullptr));
  return op.block_rows > Lanes::kSize ? use(static_cast<Floats<kWideSparse>*>(nullptr))
                                      : use(static_cast<Floats<kSparse>*>(nullptr));
}

bool is_layer(const Op& op) { return op.kind == kLayer || op.kind == kDenseLayer; }

int64_t items(const Op& op, const Run& run, const Step& step) {
  if (!is_layer(op)) return row_items(op, step);
  return with_kernel(op, [&]<typename Kernel>(Kernel*) {
    return Cut<Kernel>(op, step, run.threads).items();
  });
}

void run_item(const Op& op, const Run& run, const Step& step, int64_t item, float* scratch) {
  if (!is_layer(op)) return row_item(op, run, step, item);
  with_kernel(op, [&]<typename Kernel>(Kernel*) { layer<Kernel>(op, run, step, item, scratch); });
}

int64_t scratch(const Op& op) {
  if (!is_layer(op)) return 0;
  return with_kernel(op, [&]<typename Kernel>(Kernel*) { return Kernel::scratch(op); });
}

#if defined(INT8)
constexpr int kInt8Outputs = kOutputBytes;
#else
constexpr int kInt8Outputs = 0;
#endif

}  // namespace

extern const Kernels KERNELS = {Lanes::kSize, kPacked, kInt8Outputs, 1,
                                Lanes::kSize * sizeof(float), items, run_item, scratch};

}  // namespace maxq
