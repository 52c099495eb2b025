// N:M convolutions and linear layers, output channels in lanes; activations channels-last, a tile of
// runtime.h being one pixel, its channels padded to whole vectors.
//
// A vector holds 16 input channels of one pixel. Because a pattern keeps exactly N of every M, every
// output has the same number of weights among them: for each of these steps the vector is permuted
// by 16 indices and multiplied by 16 values, one for each output. Two vectors are permuted as one
// where M is 32. A block is kPixels pixels, which may lie anywhere, by 2 vectors of outputs.
#pragma once

#include "runtime.h"

#include "lanes.h"

#include "rows.h"

namespace maxq {
namespace {

constexpr int kPixels = 12;  // 24 accumulators of 32 registers
constexpr int kGroups = 2;   // vectors of outputs
constexpr int kOutputs = kGroups * Lanes::kSize;

// Blocks of pixels of all images, and blocks of outputs; items are some of both.
struct Cut {
  int64_t pixels, blocks, outputs, item_blocks, item_outputs, chunks;
  Cut(const Op& op, int64_t threads) {
    pixels = op.out.n * op.out.h * op.out.w;
    blocks = divide_up(pixels, kPixels);
    outputs = divide_up(op.out.c, kOutputs);
    const int64_t wanted = threads > 1 ? 8 * threads : 1;
    item_blocks = blocks > 4 * wanted ? 4 : 1;
    const int64_t parts = divide_up(blocks, item_blocks);
    int64_t split = parts == 0 ? 1 : divide_up(wanted, parts);
    if (split > outputs) split = outputs;
    item_outputs = divide_up(outputs, split);
    chunks = divide_up(outputs, item_outputs);
  }
  int64_t items() const { return divide_up(blocks, item_blocks) * chunks; }
};

struct Block {
  const float* in[kPixels];        // at kernel offset 0
  const float* residual[kPixels];
  float* out[kPixels];
  int64_t count;                   // pixels that exist
};

void locate(const Op& op, const Run& run, int64_t first, int64_t pixels, Block& block) {
  block.count = pixels - first < kPixels ? pixels - first : kPixels;
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = first + (i < block.count ? i : block.count - 1);
    const int64_t x = pixel % op.out.w, y = pixel / op.out.w % op.out.h;
    const int64_t image = pixel / op.out.w / op.out.h;
    block.in[i] = pixel_of<float>(op.in, run, image, y * op.stride[0], x * op.stride[1]);
    block.out[i] = pixel_of<float>(op.out, run, image, y, x);
    block.residual[i] = op.other.pitch ? pixel_of<float>(op.other, run, image, y, x) : nullptr;
  }
}

// Weights of kOutputs outputs: [kernel position][channels][step][output].
struct Weights {
  const float* values;
  const uint8_t* columns;
};

using Sums = Lanes[kPixels][kGroups];

// Adds what the channels of one kernel position give; kWide: two vectors are permuted as one.
template <bool kWide>
void multiply_sparse(const Op& op, const float* const* in, int64_t shift, Weights& w, Sums& sum) {
  constexpr int kWidth = kWide ? 2 * Lanes::kSize : Lanes::kSize;
  for (int64_t c = 0; c < op.in.c; c += kWidth) {
    for (int64_t step = 0; step < op.steps; ++step) {
      Columns column[kGroups];
      Lanes value[kGroups];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        column[g] = Columns::load(w.columns + g * Lanes::kSize);
        value[g] = Lanes::load(w.values + g * Lanes::kSize);
      }
#pragma GCC unroll 12
      for (int i = 0; i < kPixels; ++i) {
        const float* from = in[i] + shift + c;
        // Read again at each step: all of them ahead of the loop do not fit into registers.
        asm("" : "+r"(from));
        const Lanes low = Lanes::load(from);
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g)
          sum[i][g] = sum[i][g].fma(
              kWide ? low.permuted(Lanes::load(from + Lanes::kSize), column[g])
                    : low.permuted(column[g]), value[g]);
      }
      w.columns += kOutputs;
      w.values += kOutputs;
    }
  }
}

void multiply_dense(const Op& op, const float* const* in, int64_t shift, Weights& w, Sums& sum) {
  for (int64_t c = 0; c < op.in.c; ++c) {
    Lanes value[kGroups];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) value[g] = Lanes::load(w.values + g * Lanes::kSize);
#pragma GCC unroll 12
    for (int i = 0; i < kPixels; ++i) {
      const Lanes input = Lanes::fill(in[i][shift + c]);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) sum[i][g] = sum[i][g].fma(input, value[g]);
    }
    w.values += kOutputs;
  }
}

enum Form { kSparse, kWideSparse, kDense };

template <Form kForm>
void multiply(const Op& op, const Block& block, int64_t output, Weights w) {
  Sums sum;
#pragma GCC unroll 12
  for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g)
      sum[i][g] = Lanes::load(op.bias + output + g * Lanes::kSize);
  for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
    for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
      const int64_t y = ky * op.dilation[0] - op.padding[0];
      const int64_t x = kx * op.dilation[1] - op.padding[1];
      const int64_t shift = (y * op.in.pitch + x) * channels_of<float>(op.in);
      if constexpr (kForm == kDense) multiply_dense(op, block.in, shift, w, sum);
      if constexpr (kForm == kSparse) multiply_sparse<false>(op, block.in, shift, w, sum);
      if constexpr (kForm == kWideSparse) multiply_sparse<true>(op, block.in, shift, w, sum);
    }
#pragma GCC unroll 12
  for (int i = 0; i < kPixels; ++i) {
    if (i >= block.count) break;
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      const int64_t at = output + g * Lanes::kSize;
      if (at >= op.out.c) break;
      Lanes value = sum[i][g];
      if (block.residual[i]) value = value.plus(Lanes::load(block.residual[i] + at));
      if (op.relu) value = value.relu();
      value.store(block.out[i] + at);
    }
  }
}

void layer(const Op& op, const Run& run, int64_t item) {
  const Cut cut(op, run.threads);
  const int64_t part = item / cut.chunks, chunk = item % cut.chunks;
  const bool is_dense = op.kind == kDenseLayer;
  const int64_t group = op.block_rows;  // channels that are permuted as one
  const int64_t size = op.kernel[0] * op.kernel[1] * kOutputs *
                       (is_dense ? op.in.c : divide_up(op.in.c, group) * op.steps);
  const auto work = is_dense ? multiply<kDense>
                    : group == Lanes::kSize ? multiply<kSparse> : multiply<kWideSparse>;
  Block blocks[4];
  int64_t count = 0;
  for (int64_t b = part * cut.item_blocks; b < cut.blocks && count < cut.item_blocks; ++b)
    locate(op, run, b * kPixels, cut.pixels, blocks[count++]);
  for (int64_t o = chunk * cut.item_outputs; o < cut.outputs && o < (chunk + 1) * cut.item_outputs;
       ++o) {
    const Weights weights{static_cast<const float*>(op.values) + o * size,
                          static_cast<const uint8_t*>(op.rows) + o * size};
    for (int64_t b = 0; b < count; ++b) work(op, blocks[b], o * kOutputs, weights);
  }
  if (item == 0) clear_border<float>(op.out, run);
}

int64_t items(const Op& op, const Run& run) {
  return op.kind == kLayer || op.kind == kDenseLayer ? Cut(op, run.threads).items()
                                                     : row_items(op);
}

void run_item(const Op& op, const Run& run, int64_t item, float*) {
  if (op.kind == kLayer || op.kind == kDenseLayer) return layer(op, run, item);
  row_item(op, run, item);
}

int64_t scratch(const Op&) { return 0; }

}  // namespace

extern const Kernels KERNELS = {Lanes::kSize, kOutputs, 0, 1, Lanes::kSize * sizeof(float),
                                items, run_item, scratch};

}  // namespace maxq
