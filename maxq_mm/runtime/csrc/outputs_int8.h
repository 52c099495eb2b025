// What outputs.h does, in bytes: uint8 activations, int8 weights, exact sums in int32.
//
// A vector holds 64 input channels of one pixel. For each step a byte permute picks four of them for
// every output, and one instruction multiplies them by four weights and adds the products.
#pragma once

#include "blocks.h"

#include "bytes.h"

namespace maxq {
namespace {

template <bool kDense>
struct Int8 {
  using T = uint8_t;
  using Weight = int8_t;
  static constexpr int kTogether = 4;
  static constexpr int kWidth = kDense ? kTogether : kTogether * Lanes::kSize;  // channels of a step
  static constexpr int kSize = kOutputs * kTogether;  // weights of a step
  static constexpr int kVector = Lanes::kSize * kTogether;

  static int64_t weights(const Op& op) {
    return op.kernel[0] * op.kernel[1] * divide_up(op.in.c, kWidth) * op.steps * kSize;
  }

  // Adds what the channels of one kernel position give.
  static void add(const Op& op, const uint8_t* const* in, int64_t shift, Weights<int8_t>& w,
                  Sums (&sum)[kPixels][kGroups]) {
    for (int64_t c = 0; c < op.in.c; c += kWidth) {
      for (int64_t step = 0; step < op.steps; ++step) {
        Bytes column[kGroups], value[kGroups];
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
          if (!kDense) column[g] = Bytes::load(w.columns + g * kVector);
          value[g] = Bytes::load(w.values + g * kVector);
        }
#pragma GCC unroll 12
        for (int i = 0; i < kPixels; ++i) {
          const uint8_t* from = in[i] + shift + c;
          asm("" : "+r"(from));  // as in outputs.h
          const Bytes input = kDense ? Bytes::fill(from) : Bytes::load(from);
#pragma GCC unroll 2
          for (int g = 0; g < kGroups; ++g)
            sum[i][g] = sum[i][g].dot(kDense ? input : input.permuted(column[g]), value[g]);
        }
        w.columns += kSize;
        w.values += kSize;
      }
    }
  }

  static void multiply(const Op& op, const Block<uint8_t>& block, int64_t output,
                       Weights<int8_t> w) {
    Sums sum[kPixels][kGroups];
#pragma GCC unroll 12
    for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) sum[i][g] = Sums::none();
    for_positions<uint8_t>(op, [&](int64_t shift) { add(op, block.in, shift, w, sum); });
    const Lanes offset = Lanes::fill(op.offset), factor = Lanes::fill(op.other_factor);
    const auto least = static_cast<int32_t>(op.relu ? op.out.zero : 0);
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      const int64_t at = output + g * Lanes::kSize;
      if (at >= op.out.c) break;
      const Lanes scale = Lanes::load(op.scales + at), bias = Lanes::load(op.bias + at).plus(offset);
#pragma GCC unroll 12
      for (int i = 0; i < kPixels; ++i) {
        if (i >= block.count) break;
        Lanes value = multiplied(sum[i][g].numbers(), scale, bias);
        if (block.residual[i]) value = multiplied(numbers(block.residual[i] + at), factor, value);
        if (op.out.element == 1) {
          store_bytes(value, least, reinterpret_cast<uint8_t*>(block.out[i]) + at);
        } else {
          if (op.relu) value = value.relu();
          value.store(reinterpret_cast<float*>(block.out[i]) + at);
        }
      }
    }
  }
};

}  // namespace
}  // namespace maxq
