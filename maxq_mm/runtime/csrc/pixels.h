// N:M convolutions and linear layers, pixels in lanes; see runtime.h for the layout.
//
// The inputs of a tile of output pixels, a row for each kernel position and input channel, are taken
// in blocks that fit into the first-level cache; a 1 x 1 convolution finds them there as they are,
// others copy them. For every weight that is not 0 its row is multiplied by it and added: one
// broadcast and kTileVectors multiply-adds that read memory. No permutes, so every N:M is served
// alike, and the work falls with N/M. Because a pattern keeps exactly N of M, all outputs have the
// same number of weights in every block.
#pragma once

#include "tiles.h"

namespace maxq {
namespace {

constexpr int kOutputs = Lanes::kSize == 8 ? 3 : 6;  // accumulators: 12 of 16, 24 of 32 registers

template <bool kDense>
struct Floats {
  using T = float;
  using Weight = float;
  using Sum = float;
  using Group = maxq::Group<T, Weight, Sum>;
  static constexpr bool kIsDense = kDense;
  static constexpr int kOutputs = maxq::kOutputs;
  static int64_t rows(const Op& op) { return op.block_rows + 1; }
  static int64_t weights(const Op& op, int64_t rows) { return rows * op.steps / op.block_rows; }
  static void prepare(Group&, float*, int64_t) {}
  static void multiply(const Group& group);
};

template <bool kDense>
void Floats<kDense>::multiply(const Group& group) {
  const Op& op = *group.op;
  Lanes sum[kOutputs][kTileVectors];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
    for (int p = 0; p < kTileVectors; ++p)
      sum[o][p] = group.is_first ? Lanes::fill(op.bias[group.output + o])
                                 : Lanes::load(group.sums + o * kWidth + p * Lanes::kSize);
  const float *values = group.values, *inputs = group.inputs;
  const uint16_t* rows = group.rows;
  for (int64_t i = 0; i < group.count; ++i) {
    if constexpr (kDense) {
      // Values first: sums, values and one input are all registers there are.
      Lanes value[kOutputs];
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) value[o] = Lanes::fill(values[o]);
#pragma GCC unroll 8
      for (int p = 0; p < kTileVectors; ++p) {
        const Lanes input = Lanes::load(inputs + p * Lanes::kSize);
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) sum[o][p] = sum[o][p].fma(value[o], input);
      }
      inputs += kWidth;
    } else {
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Lanes value = Lanes::fill(values[o]);
        const float* row = inputs + static_cast<size_t>(rows[o]) * kWidth;
#pragma GCC unroll 8
        for (int p = 0; p < kTileVectors; ++p)
          sum[o][p] = sum[o][p].fma(value, Lanes::load(row + p * Lanes::kSize));
      }
      rows += kOutputs;
    }
    values += kOutputs;
  }
  if (!group.is_last) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
      for (int p = 0; p < kTileVectors; ++p)
        sum[o][p].store(group.sums + o * kWidth + p * Lanes::kSize);
    return;
  }
  float* out = reinterpret_cast<float*>(group.out);
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
    if (group.output + o >= op.out.c) break;
#pragma GCC unroll 8
    for (int p = 0; p < kTileVectors; ++p) {
      Lanes value = sum[o][p];
      const int64_t at = p * Lanes::kSize;
      if (group.residual) value = value.plus(Lanes::load(group.residual + o * kWidth + at));
      if (op.relu) value = value.relu();
      if (group.tile->is_masked) value = value.where(group.tile->mask + at);
      value.store(out + o * kWidth + at);
    }
  }
}

}  // namespace
}  // namespace maxq
