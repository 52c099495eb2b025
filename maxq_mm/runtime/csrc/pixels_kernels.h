// The operators of a set whose lanes are pixels.
#pragma once

#include "pixels.h"
#if LANES == 8
#include "pixels_int8.h"
#endif

namespace maxq {
namespace {

bool is_layer(const Op& op) { return op.kind == kLayer || op.kind == kDenseLayer; }

#if LANES == 8
constexpr int kInt8Outputs = Int8<true>::kOutputs;
#else
constexpr int kInt8Outputs = 0;  // there are none
#endif

int64_t items(const Op& op, const Run& run, const Step& step) {
  if (!is_layer(op)) return move_items(op, step);
  const Cut cut(op, op.in.element == 1 ? kInt8Outputs : kOutputs, run.threads);
  return (step.end - step.begin) * cut.chunks;
}

void run_item(const Op& op, const Run& run, const Step& step, int64_t item, float* scratch) {
  if (!is_layer(op)) {
    const View& view = op.kind == kExport ? op.in : op.out;
    return view.element == 1 ? move_item(op, run, step, item, reinterpret_cast<uint8_t*>(scratch))
                             : move_item(op, run, step, item, scratch);
  }
  const bool is_dense = op.kind == kDenseLayer;
#if LANES == 8
  if (op.in.element == 1)
    return (is_dense ? layer<Int8<true>> : layer<Int8<false>>)(op, run, step, item, scratch);
#endif
  (is_dense ? layer<Floats<true>> : layer<Floats<false>>)(op, run, step, item, scratch);
}

int64_t scratch(const Op& op) {
  if (!is_layer(op)) return move_scratch(op);
  // Inputs of bytes take less than floats do, sums as much.
  return (op.block_rows + 4 + divide_up(op.out.c, kOutputs) * kOutputs) * kWidth;
}

}  // namespace

extern const Kernels KERNELS = {Lanes::kSize, kOutputs, kInt8Outputs, kWidth,
                                1, items, run_item, scratch};

}  // namespace maxq
