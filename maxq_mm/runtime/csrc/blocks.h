// Layers whose lanes are output channels: how they are cut into blocks.
//
// A block is Kernel::kPixels pixels, which may lie anywhere, by Kernel::kOutputs outputs.
#pragma once

#include "rows.h"

namespace maxq {
namespace {

// Blocks of a step's pixels, and blocks of outputs; items are some of both.
template <typename Kernel>
struct Cut {
  int64_t first, end;  // pixels of all images
  int64_t blocks, outputs, item_blocks, item_outputs, chunks;
  Cut(const Op& op, const Step& step, int64_t threads) {
    first = step.begin * op.out.w;
    end = step.end * op.out.w;
    blocks = divide_up(end - first, Kernel::kPixels);
    outputs = divide_up(op.out.c, Kernel::kOutputs);
    const int64_t wanted = threads > 1 ? 8 * threads : 1;
    item_blocks = blocks > Kernel::kBlocks * wanted ? Kernel::kBlocks : 1;
    const int64_t parts = divide_up(blocks, item_blocks);
    int64_t split = parts == 0 ? 1 : divide_up(wanted, parts);
    if (split > outputs) split = outputs;
    item_outputs = divide_up(outputs, split);
    chunks = divide_up(outputs, item_outputs);
  }
  int64_t items() const { return divide_up(blocks, item_blocks) * chunks; }
};

template <typename T, int kPixels>
struct Block {
  const T* in[kPixels];        // at kernel offset 0
  const T* residual[kPixels];  // or null
  char* out[kPixels];
  int64_t count;               // pixels that exist; the others are the last of them
};

template <typename T, int kPixels>
void locate(const Op& op, const Run& run, int64_t first, int64_t end, Block<T, kPixels>& block) {
  block.count = end - first < kPixels ? end - first : kPixels;
  int64_t x = first % op.out.w, y = first / op.out.w;
  int64_t image = y / op.out.h;
  y %= op.out.h;
  const int64_t in_step = op.stride[1] * op.in.size, other_step = op.other.size;
  const int64_t out_step = op.out.size * op.out.element;
  const T *in = nullptr, *other = nullptr;
  char* out = nullptr;
  for (int i = 0; i < kPixels; ++i) {
    if (i == 0 || (x == 0 && i < block.count)) {
      in = pixel_of<T>(op.in, run, image, y * op.stride[0], x * op.stride[1]);
      out = pixel_of<char>(op.out, run, image, 0, 0) + (y * op.out.pitch + x) * out_step;
      other = op.other.pitch ? pixel_of<T>(op.other, run, image, y, x) : nullptr;
    }
    block.in[i] = in;
    block.out[i] = out;
    block.residual[i] = other;
    if (i + 1 >= block.count) continue;
    in += in_step;
    out += out_step;
    if (other) other += other_step;
    if (++x < op.out.w) continue;
    x = 0;
    if (++y < op.out.h) continue;
    y = 0;
    ++image;
  }
}

// Weights of a kernel's outputs: [kernel position][channels][step][output].
template <typename Weight>
struct Weights {
  const Weight* values;
  const uint8_t* columns;
};

// Calls use(elements from a pixel to its input) for each kernel position.
template <typename Use>
void for_positions(const Op& op, const Use& use) {
  for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
    for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
      const int64_t y = ky * op.dilation[0] - op.padding[0];
      const int64_t x = kx * op.dilation[1] - op.padding[1];
      use((y * op.in.pitch + x) * op.in.size);
    }
}

// A kernel has T and Weight; kPixels and kOutputs; kBlocks, of an item at most, which share the
// weights that they read; weights, of kOutputs outputs; and multiply, a block with those. What
// multiply keeps from one call for a block, which has a number, to the next is in its scratch.
template <typename Kernel>
void layer(const Op& op, const Run& run, const Step& step, int64_t item, float* scratch) {
  const Cut<Kernel> cut(op, step, run.threads);
  const int64_t part = item / cut.chunks, chunk = item % cut.chunks;
  const int64_t size = Kernel::weights(op);
  Block<typename Kernel::T, Kernel::kPixels> blocks[Kernel::kBlocks];
  int64_t count = 0;
  for (int64_t b = part * cut.item_blocks; b < cut.blocks && count < cut.item_blocks; ++b)
    locate(op, run, cut.first + b * Kernel::kPixels, cut.end, blocks[count++]);
  Kernel kernel(op, scratch);
  for (int64_t o = chunk * cut.item_outputs; o < cut.outputs && o < (chunk + 1) * cut.item_outputs;
       ++o) {
    const Weights<typename Kernel::Weight> weights{
        static_cast<const typename Kernel::Weight*>(op.values) + o * size,
        static_cast<const uint8_t*>(op.rows) + o * size};
    for (int64_t b = 0; b < count; ++b)
      kernel.multiply(b, blocks[b], o * Kernel::kOutputs, weights);
  }
  if (step.begin + item == 0)
    (op.out.element == 1 ? clear_border<uint8_t> : clear_border<float>)(op.out, run);
}

}  // namespace
}  // namespace maxq
