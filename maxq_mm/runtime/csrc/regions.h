// RoIAlign (average): features of regions, for maps of any number of levels.
//
// A bin is the mean of bilinear samples on a grid, and a sample's weights are those of its row times
// those of its column. So the mean is a sum over rows of sums over columns: per region, not per
// channel, the samples of a bin are added up to one weight a row and one a column. A channel of a
// region is then two small products: rows of the map into rows of bins, and those into bins, whose
// columns are in lanes.
//
// Where the channels of a pixel lie side by side, they are in lanes instead: of a region rows of the
// map into one line, its columns into bins, 64 channels at a time.
#pragma once

#include <cstdint>

namespace maxq {

// Features (N, C, H, W): of each channel rows of W side by side, or of each pixel its channels.
// Mirrored in regions.py.
struct Map {
  const float* data;
  int64_t n, h, w;
  int64_t image, channel, row, pixel;  // strides
  float scale;                  // of boxes
};

// Mirrored in regions.py.
struct RoiAlign {
  int64_t count, channels, rows, columns;  // regions, and bins of each
  int64_t sampling, aligned;               // samples a bin and axis, 0: one a pixel; half a pixel off
  int64_t levels;
  const Map* maps;       // of each level
  const float* boxes;    // (count, 5): image, x1, y1, x2, y2
  const int64_t* level;  // of each region
  float* out;            // (count, C, rows, columns)
};

// What is the same for all channels of a region. A row of bins takes weights[i] of map row
// first + i; so does a vector of bins, Lanes::kSize weights for each map column.
struct Taps {
  int64_t first, count;
  const float* weights;
};

struct Region {
  const float* data;    // of the first channel of its image
  int64_t channel, row, pixel;  // strides
  int64_t left, width;  // the columns of the map that are read
  const Taps *rows, *vectors;  // of bins; where channels are in lanes a vector is one bin
  float* out;           // of its first channel
};

// What one instruction set offers.
struct RegionKernels {
  int64_t lanes;
  // Floats that align needs.
  int64_t (*scratch)(const RoiAlign& op, int64_t widest);
  // Channels begin to end of all regions.
  void (*align)(const RoiAlign& op, const Region* regions, int64_t begin, int64_t end, float* scratch);
  // All channels, whole vectors of them, of a region whose channels are in lanes; null: no such.
  int64_t (*pixels_scratch)(const RoiAlign& op, int64_t widest);
  void (*align_pixels)(const RoiAlign& op, const Region& region, float* scratch);
};

extern const RegionKernels kRegionsAvx2, kRegionsAvx512;

}  // namespace maxq
