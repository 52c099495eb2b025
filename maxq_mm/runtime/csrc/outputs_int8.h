// What outputs.h does, in bytes: uint8 activations, int8 weights, exact sums in int32.
//
// A vector holds 64 input channels of one pixel. For each step a byte permute picks four of them for
// every output, and one instruction multiplies them by four weights and adds the products. A block is
// 6 pixels by 64 outputs, whose bytes become one vector: see bytes.h for the order of outputs.
//
// Dense layers take four channels at a time. Those of a few channels, an image's, lie so near that a
// row of the kernel is read as if its positions were channels; see arrange_int8.py.
#pragma once

#include "blocks.h"
#include "bytes.h"

namespace maxq {
namespace {

constexpr int kOutputBytes = kQuad * Lanes::kSize;  // 64 outputs

// From sums to a pixel of 64 outputs.
struct Finish {
  const Op& op;
  int64_t output, kept;  // the first one, and bytes of the pixel from there, at most 64
  Lanes offset, factor;
  uint8_t least;
  Finish(const Op& op, int64_t output)
      : op(op), output(output), kept(op.out.size - output), offset(Lanes::fill(op.offset)),
        factor(Lanes::fill(op.other_factor)),
        least(static_cast<uint8_t>(op.relu ? op.out.zero : 0)) {
    if (kept > kOutputBytes) kept = kOutputBytes;
  }

  // Of `count` pixels.
  void operator()(const int32_t* sums, const uint8_t* const* residual, char* const* out,
                  int64_t count) const {
    Lanes scale[kQuad], bias[kQuad];
#pragma GCC unroll 4
    for (int g = 0; g < kQuad; ++g) {
      scale[g] = Lanes::load(op.scales + output + g * Lanes::kSize);
      bias[g] = Lanes::load(op.bias + output + g * Lanes::kSize).plus(offset);
    }
    for (int64_t i = 0; i < count; ++i, sums += kOutputBytes) {
      Lanes value[kQuad];
#pragma GCC unroll 4
      for (int g = 0; g < kQuad; ++g)
        value[g] = multiplied(Sums::load(sums + g * Lanes::kSize).numbers(), scale[g], bias[g]);
      store(value, residual[i], out[i]);
    }
  }

 private:
  void store(Lanes (&value)[kQuad], const uint8_t* residual, char* out) const {
    if (residual) {
      const Bytes other = Bytes::load(residual + output, kept);
#pragma GCC unroll 4
      for (int g = 0; g < kQuad; ++g) value[g] = multiplied(numbers(other, g), factor, value[g]);
    }
    if (op.out.element == 1)
      return packed(value, least).store(reinterpret_cast<uint8_t*>(out) + output, kept);
    put_in_order(value);
#pragma GCC unroll 4
    for (int g = 0; g < kQuad; ++g) {
      const int64_t at = output + g * Lanes::kSize;
      if (at >= op.out.c) break;
      (op.relu ? value[g].relu() : value[g]).store(reinterpret_cast<float*>(out) + at);
    }
  }
};

// Whether a row of the kernel is read as channels.
bool is_narrow(const Op& op) { return op.in.size < kOutputBytes; }

// Calls use(bytes from a pixel to its inputs) for each place where `block_rows` quads of them lie.
template <typename Use>
void for_quads(const Op& op, const Use& use) {
  if (!is_narrow(op)) return for_positions(op, use);
  for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
    use(((ky * op.dilation[0] - op.padding[0]) * op.in.pitch - op.padding[1]) * op.in.size);
}

template <bool kDense>
struct Int8 {
  using T = uint8_t;
  using Weight = int8_t;
  static constexpr int kPixels = 6;  // 24 accumulators of 32 registers
  static constexpr int kBlocks = 8;
  static constexpr int kOutputs = kOutputBytes;
  static constexpr int kTogether = 4;
  static constexpr int kWidth = kTogether * Lanes::kSize;  // channels that are permuted as one
  static constexpr int kSize = kOutputs * kTogether;       // weights of a step
  static constexpr int kVector = Lanes::kSize * kTogether;
  using Block = maxq::Block<uint8_t, kPixels>;
  using Accumulators = Sums[kPixels][kQuad];

  const Op& op;
  int32_t* const sums;  // of a block
  Int8(const Op& op, float* scratch) : op(op), sums(reinterpret_cast<int32_t*>(scratch)) {}

  static int64_t weights(const Op& op) {
    if (!kDense)
      return op.kernel[0] * op.kernel[1] * divide_up(op.in.c, kWidth) * op.steps * kSize;
    return op.kernel[0] * (is_narrow(op) ? 1 : op.kernel[1]) * op.steps * kSize;
  }
  static int64_t scratch(const Op&) { return kPixels * kOutputs; }

  // Adds what the channels of one kernel position give.
  void add_sparse(const Block& block, int64_t shift, Weights<int8_t>& w, Accumulators& sum) const {
    for (int64_t c = 0; c < op.in.c; c += kWidth) {
      for (int64_t step = 0; step < op.steps; ++step) {
#pragma GCC unroll 4
        for (int g = 0; g < kQuad; ++g) {
          const Bytes column = Bytes::load(w.columns + g * kVector);
          const Bytes value = Bytes::load(w.values + g * kVector);
#pragma GCC unroll 6
          for (int i = 0; i < kPixels; ++i) {
            const uint8_t* from = block.in[i] + shift + c;
            // Read by each permute: all vectors of the block do not fit into registers.
            asm volatile("" : "+r"(from));
            sum[i][g] = sum[i][g].dot(Bytes::load(from).permuted(column), value);
          }
        }
        w.columns += kSize;
        w.values += kSize;
      }
    }
  }

  void add_dense(const Block& block, int64_t shift, Weights<int8_t>& w, Accumulators& sum) const {
    for (int64_t quad = 0; quad < op.block_rows; ++quad) {
      Bytes value[kQuad];
#pragma GCC unroll 4
      for (int g = 0; g < kQuad; ++g)
        value[g] = Bytes::load(w.values + quad * kSize + g * kVector);
#pragma GCC unroll 6
      for (int i = 0; i < kPixels; ++i) {
        const Bytes input = Bytes::fill(block.in[i] + shift + quad * kTogether);
#pragma GCC unroll 4
        for (int g = 0; g < kQuad; ++g) sum[i][g] = sum[i][g].dot(input, value[g]);
      }
    }
    w.values += op.steps * kSize;
  }

  // By itself, and its sums in memory: else compilers keep accumulators there all the time.
  [[gnu::noinline]] void add_all(const Block& block, Weights<int8_t> w, int32_t* to) const {
    Accumulators sum;
#pragma GCC unroll 6
    for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 4
      for (int g = 0; g < kQuad; ++g) sum[i][g] = Sums::none();
    if constexpr (kDense)
      for_quads(op, [&](int64_t shift) { add_dense(block, shift, w, sum); });
    else
      for_positions(op, [&](int64_t shift) { add_sparse(block, shift, w, sum); });
#pragma GCC unroll 6
    for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 4
      for (int g = 0; g < kQuad; ++g) sum[i][g].store(to + i * kOutputs + g * Lanes::kSize);
  }

  void multiply(int64_t, const Block& block, int64_t output, Weights<int8_t> w) const {
    add_all(block, w, sums);
    Finish(op, output)(sums, block.residual, block.out, block.count);
  }
};

}  // namespace
}  // namespace maxq
