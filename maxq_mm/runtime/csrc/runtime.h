// What the parts of the runtime share: plain structures, no code, nothing of torch.
//
// Layout of activations: planar, pixels in lanes. Channel c of image n begins at
// data + n * image + c * channel; pixel (y, x) stands at y * pitch + x. Columns w to pitch - 1 of a
// row are 0, and so is the gap behind each channel and before the first: a convolution reads its
// padding there, and pixel i of a map needs the inputs i + constant.
#pragma once

#include <cstdint>

namespace maxq {

constexpr int kTileVectors = 4;  // a tile is so many vectors of pixels

// A planar tensor; offset, image and channel count floats. Mirrored in program.py.
struct View {
  int64_t offset;          // of the first pixel in the arena
  int64_t image, channel;  // strides; the gap of a channel ends where the next begins
  int64_t n, c, h, w, pitch;
  int64_t front;           // floats before offset that must be 0
};

enum Kind : int64_t { kImport, kExport, kLayer, kDenseLayer, kMaxPool, kAdd, kUpsample };

// One operator. Mirrored in program.py.
struct Op {
  Kind kind;
  int64_t relu;
  View in, other, out;       // other: residual, second summand; pitch 0 if there is none
  int64_t external;          // import, export: which tensor outside
  int64_t strides[4];        // import, export: of it, (N, C, H, W)
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t n, m;              // pattern
  int64_t block_rows;        // rows of the tile that are worked on at a time, a multiple of m
  const float* values;       // see kernels.py: pack
  const uint16_t* rows;
  const float* bias;         // O padded to whole groups
};

struct Run {
  float* arena;
  float* const* externals;
  int64_t threads;
};

// What one instruction set offers.
struct Kernels {
  int64_t lanes;
  int64_t outputs;  // output channels side by side
  // Number of independent items of an operator; run_item(op, run, item, items) does one of them,
  // with kScratch floats of its own.
  int64_t (*items)(const Op& op, const Run& run);
  void (*run_item)(const Op& op, const Run& run, int64_t item, float* scratch);
  int64_t (*scratch)(const Op& op);  // floats
};

extern const Kernels kAvx2, kAvx512;

}  // namespace maxq
