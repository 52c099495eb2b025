// Layers whose lanes are output channels: how they are cut into blocks. T is float or a byte.
//
// A block is kPixels pixels, which may lie anywhere, by kGroups vectors of outputs.
#pragma once

#include "rows.h"

namespace maxq {
namespace {

constexpr int kPixels = 12;  // 24 accumulators of 32 registers
constexpr int kGroups = 2;   // vectors of outputs
constexpr int kOutputs = kGroups * Lanes::kSize;

// Blocks of a step's pixels, and blocks of outputs; items are some of both.
struct Cut {
  int64_t first, end;  // pixels of all images
  int64_t blocks, outputs, item_blocks, item_outputs, chunks;
  Cut(const Op& op, const Step& step, int64_t threads) {
    first = step.begin * op.out.w;
    end = step.end * op.out.w;
    blocks = divide_up(end - first, kPixels);
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

template <typename T>
struct Block {
  const T* in[kPixels];        // at kernel offset 0
  const T* residual[kPixels];
  char* out[kPixels];
  int64_t count;               // pixels that exist
};

template <typename T>
void locate(const Op& op, const Run& run, int64_t first, int64_t end, Block<T>& block) {
  block.count = end - first < kPixels ? end - first : kPixels;
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = first + (i < block.count ? i : block.count - 1);
    const int64_t x = pixel % op.out.w, y = pixel / op.out.w % op.out.h;
    const int64_t image = pixel / op.out.w / op.out.h;
    block.in[i] = pixel_of<T>(op.in, run, image, y * op.stride[0], x * op.stride[1]);
    block.out[i] = op.out.element == 1
                       ? reinterpret_cast<char*>(pixel_of<uint8_t>(op.out, run, image, y, x))
                       : reinterpret_cast<char*>(pixel_of<float>(op.out, run, image, y, x));
    block.residual[i] = op.other.pitch ? pixel_of<T>(op.other, run, image, y, x) : nullptr;
  }
}

// Weights of kOutputs outputs: [kernel position][channels][step][output].
template <typename Weight>
struct Weights {
  const Weight* values;
  const uint8_t* columns;
};

// Calls use(elements from a pixel to its input) for each kernel position.
template <typename T, typename Use>
void for_positions(const Op& op, const Use& use) {
  for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
    for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
      const int64_t y = ky * op.dilation[0] - op.padding[0];
      const int64_t x = kx * op.dilation[1] - op.padding[1];
      use((y * op.in.pitch + x) * channels_of<T>(op.in));
    }
}

// A kernel has T and Weight; weights, of kOutputs outputs; multiply, a block with those.
template <typename Kernel>
void layer(const Op& op, const Run& run, const Step& step, int64_t item) {
  const Cut cut(op, step, run.threads);
  const int64_t part = item / cut.chunks, chunk = item % cut.chunks;
  const int64_t size = Kernel::weights(op);
  Block<typename Kernel::T> blocks[4];
  int64_t count = 0;
  for (int64_t b = part * cut.item_blocks; b < cut.blocks && count < cut.item_blocks; ++b)
    locate(op, run, cut.first + b * kPixels, cut.end, blocks[count++]);
  for (int64_t o = chunk * cut.item_outputs; o < cut.outputs && o < (chunk + 1) * cut.item_outputs;
       ++o) {
    const Weights<typename Kernel::Weight> weights{
        static_cast<const typename Kernel::Weight*>(op.values) + o * size,
        static_cast<const uint8_t*>(op.rows) + o * size};
    for (int64_t b = 0; b < count; ++b) Kernel::multiply(op, blocks[b], o * kOutputs, weights);
  }
  if (step.begin + item == 0)
    (op.out.element == 1 ? clear_border<uint8_t> : clear_border<float>)(op.out, run);
}

}  // namespace
}  // namespace maxq
