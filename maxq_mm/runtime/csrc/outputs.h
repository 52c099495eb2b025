// N:M convolutions and linear layers, output channels in lanes; activations channels-last, a tile of
// runtime.h being one pixel, its channels padded to whole vectors.
//
// A vector holds 16 input channels of one pixel. Because a pattern keeps exactly N of every M, every
// output has the same number of weights among them: for each of these steps the vector is permuted
// by 16 indices and multiplied by 16 values, one for each output. Two vectors are permuted as one
// where M is 32.
#pragma once

#include "blocks.h"

namespace maxq {
namespace {

enum Form { kSparse, kWideSparse, kDense };

// kOutputs of a group are packed side by side; where a layer has no more, one vector is enough.
constexpr int kPacked = 2 * Lanes::kSize;

template <Form kForm, int kGroups = 2>
struct Floats {
  using T = float;
  using Weight = float;
  static constexpr int kPixels = 24 / kGroups;  // 24 accumulators of 32 registers
  static constexpr int kOutputs = kGroups * Lanes::kSize;
  static constexpr int kBlocks = 96 / kPixels;
  using Block = maxq::Block<float, kPixels>;
  using Accumulators = Lanes[kPixels][kGroups];
  // Channels that are permuted as one.
  static constexpr int kWidth = kForm == kWideSparse ? 2 * Lanes::kSize : Lanes::kSize;

  const Op& op;
  Floats(const Op& op, float*) : op(op) {}

  static int64_t weights(const Op& op) {
    return op.kernel[0] * op.kernel[1] * kPacked *
           (kForm == kDense ? op.in.c : divide_up(op.in.c, kWidth) * op.steps);
  }
  static int64_t scratch(const Op&) { return 0; }

  // Adds what the channels of one kernel position give.
  void add_sparse(const Block& block, int64_t shift, Weights<float>& w, Accumulators& sum) const {
    for (int64_t c = 0; c < op.in.c; c += kWidth) {
      for (int64_t step = 0; step < op.steps; ++step) {
        Columns column[kGroups];
        Lanes value[kGroups];
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
          column[g] = Columns::load(w.columns + g * Lanes::kSize);
          value[g] = Lanes::load(w.values + g * Lanes::kSize);
        }
#pragma GCC unroll 24
        for (int i = 0; i < kPixels; ++i) {
          const float* from = block.in[i] + shift + c;
          // Read again at each step: all of them ahead of the loop do not fit into registers.
          asm("" : "+r"(from));
          const Lanes low = Lanes::load(from);
#pragma GCC unroll 2
          for (int g = 0; g < kGroups; ++g)
            sum[i][g] = sum[i][g].fma(
                kForm == kWideSparse ? low.permuted(Lanes::load(from + Lanes::kSize), column[g])
                                     : low.permuted(column[g]), value[g]);
        }
        w.columns += kPacked;
        w.values += kPacked;
      }
    }
  }

  void add_dense(const Block& block, int64_t shift, Weights<float>& w, Accumulators& sum) const {
    for (int64_t c = 0; c < op.in.c; ++c) {
      Lanes value[kGroups];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) value[g] = Lanes::load(w.values + g * Lanes::kSize);
#pragma GCC unroll 24
      for (int i = 0; i < kPixels; ++i) {
        const Lanes input = Lanes::fill(block.in[i][shift + c]);
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) sum[i][g] = sum[i][g].fma(input, value[g]);
      }
      w.values += kPacked;
    }
  }

  void multiply(int64_t, const Block& block, int64_t output, Weights<float> w) const {
    Accumulators sum;
#pragma GCC unroll 24
    for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g)
        sum[i][g] = Lanes::load(op.bias + output + g * Lanes::kSize);
    for_positions(op, [&](int64_t shift) {
      if constexpr (kForm == kDense)
        add_dense(block, shift, w, sum);
      else
        add_sparse(block, shift, w, sum);
    });
#pragma GCC unroll 24
    for (int i = 0; i < kPixels; ++i) {
      if (i >= block.count) break;
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const int64_t at = output + g * Lanes::kSize;
        if (at >= op.out.c) break;
        Lanes value = sum[i][g];
        if (block.residual[i]) value = value.plus(Lanes::load(block.residual[i] + at));
        if (op.relu) value = value.relu();
        value.store(reinterpret_cast<float*>(block.out[i]) + at);
      }
    }
  }
};

}  // namespace
}  // namespace maxq
