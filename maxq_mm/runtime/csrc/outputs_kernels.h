// The operators of a set whose lanes are output channels; with INT8, those of bytes, too.
#pragma once

#include "outputs.h"
#if defined(INT8)
#include "outputs_int8.h"
#endif

namespace maxq {
namespace {

bool is_layer(const Op& op) { return op.kind == kLayer || op.kind == kDenseLayer; }

int64_t items(const Op& op, const Run& run, const Step& step) {
  return is_layer(op) ? Cut(op, step, run.threads).items() : row_items(op, step);
}

void run_item(const Op& op, const Run& run, const Step& step, int64_t item, float*) {
  if (!is_layer(op)) return row_item(op, run, step, item);
  const bool is_dense = op.kind == kDenseLayer;
#if defined(INT8)
  if (op.in.element == 1)
    return (is_dense ? layer<Int8<true>> : layer<Int8<false>>)(op, run, step, item);
#endif
  const bool is_wide = op.block_rows > Lanes::kSize;
  (is_dense ? layer<Floats<kDense>> : is_wide ? layer<Floats<kWideSparse>>
                                              : layer<Floats<kSparse>>)(op, run, step, item);
}

int64_t scratch(const Op&) { return 0; }

#if defined(INT8)
constexpr int kInt8Outputs = kOutputs;
#else
constexpr int kInt8Outputs = 0;
#endif

}  // namespace

extern const Kernels KERNELS = {Lanes::kSize, kOutputs, kInt8Outputs, 1,
                                Lanes::kSize * sizeof(float), items, run_item, scratch};

}  // namespace maxq
