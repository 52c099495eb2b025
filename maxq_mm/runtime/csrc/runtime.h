// What the parts of the runtime share: plain structures, no code, nothing of torch.
//
// Layout of activations: the pixels of a map, row after row, are cut into tiles of Kernels::width,
// and a tile holds its pixels of all channels, channel after channel: what a convolution reads at a
// time lies side by side. Where pixels are in lanes, a tile is kTileVectors vectors of them; where
// output channels are, it is one pixel: channels-last. Pixel (y, x) has number y * pitch + x. Columns w to
// pitch - 1 of a row are 0, and so is what stands around an image, `margin` tiles behind it and
// `front` bytes before the first: a convolution reads its padding there, and pixel i of a map needs
// the inputs i + constant.
//
// Elements are floats, or bytes q that stand for scale * (q - zero): then 0 is `zero`.
#pragma once

#include <cstdint>

namespace maxq {

constexpr int kTileVectors = 4;  // a tile is so many vectors of pixels

// A tensor; its tiles begin at bytes offset + image number * image. Mirrored in library.py.
struct View {
  int64_t offset, image;
  int64_t n, c, h, w, pitch;
  int64_t size;            // elements of a pixel whose channels lie side by side, with padding
  int64_t tiles, margin;   // of an image, and zeros behind it
  int64_t front;           // bytes before the first image that are 0
  int64_t element;         // bytes of an element: 4, float, or 1
  int64_t zero;            // the byte that stands for 0; of floats 0
  // Tile i, counted with the margins through all images, lies at place i & ring. -1: each has its
  // own; 2^k - 1: as many are kept, in turn, of a value whose readers follow its maker; pixels in
  // lanes only.
  int64_t ring;
};

enum Kind : int64_t { kImport, kExport, kLayer, kDenseLayer, kMaxPool, kAdd, kUpsample, kConvert,
                     kDepthToSpace };

// One operator. Mirrored in library.py.
struct Op {
  Kind kind;
  int64_t relu;
  View in, other, out;       // other: residual, second summand; pitch 0 if there is none
  int64_t external;          // import, export: which tensor outside
  int64_t strides[4];        // import, export: of it, (N, C, H, W)
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // depth to space: stride is the block
  // Inputs that are worked on at a time, channels permuted as one; of dense layers in bytes whose
  // lanes are outputs, quads of inputs at a kernel position.
  int64_t block_rows;
  int64_t steps;             // weights of an output in such a block; quads with padding
  const void* values;        // float or int8; see arrange.py
  const void* rows;          // of each weight, its place in the block
  const float* bias;         // O padded to whole groups
  // Of bytes. A layer's result is clamp(round(sum * scales[o] + (bias[o] + offset) + other *
  // other_factor)), of two multiply-adds that round once; a sum's is clamp(round((in - zero) *
  // factor + offset + (other - zero) * other_factor)), the second summand's first. What becomes bytes
  // is clamp(round(x * factor + offset)); of an image, scales and bias are factor and offset of each
  // channel, and its padding is what 0 becomes there.
  const float* scales;       // as bias
  float factor, other_factor, offset;
};

// Units begin to end of an operator: tiles of all images, of layers whose lanes are pixels; else
// rows of all images, of depth to space whole blocks. Steps run one after the other; mirrored in
// library.py.
struct Step {
  int64_t op, begin, end;
};

struct Run {
  char* arena;
  float* const* externals;
  int64_t threads;
};

// What one instruction set offers.
struct Kernels {
  int64_t lanes;
  int64_t outputs, int8_outputs;  // output channels side by side; 0: no such kernels
  int64_t width;    // pixels of a tile
  int64_t unit;     // bytes that the channels of a pixel side by side are padded to a multiple of
  // Number of independent items of a step; run_item does one of them, with memory of its own.
  int64_t (*items)(const Op& op, const Run& run, const Step& step);
  void (*run_item)(const Op& op, const Run& run, const Step& step, int64_t item, float* scratch);
  int64_t (*scratch)(const Op& op);  // floats
};

extern const Kernels kPixelsAvx2, kPixelsAvx512, kOutputsAvx512, kOutputsVnni, kOutputsAmx;

}  // namespace maxq
