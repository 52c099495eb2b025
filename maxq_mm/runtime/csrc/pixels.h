// N:M convolutions and linear layers, pixels in lanes; see runtime.h for the layout.
//
// The inputs of a tile (kTileVectors vectors of output pixels) are copied to the first-level cache,
// a row for each kernel position and input channel, block_rows of them at a time. For every weight
// that is not 0 its row is multiplied by it and added: one broadcast and kTileVectors multiply-adds
// that read memory. No permutes, so every N:M is served alike, and the work falls with N/M. Because
// a pattern keeps exactly N of M, all outputs have the same number of weights in every block.
#pragma once

#include "runtime.h"

#include "lanes.h"

#include "moves.h"

namespace maxq {
namespace {

constexpr int kWidth = kTileVectors * Lanes::kSize;  // pixels of a tile

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a layer is cut: tiles of pixels of an image, and chunks of groups of kOutputs outputs.
struct Cut {
  int64_t groups, tiles, chunks, chunk_groups;
  Cut(const Op& op, int64_t threads) {
    groups = divide_up(op.out.c, kOutputs);
    tiles = divide_up(op.out.h * op.out.pitch, kWidth);
    const int64_t all = tiles * op.out.n, wanted = threads > 1 ? 4 * threads : 1;
    chunks = all == 0 ? 1 : divide_up(wanted, all);
    if (chunks > divide_up(groups, 4)) chunks = divide_up(groups, 4);
    chunk_groups = divide_up(groups, chunks);
    chunks = divide_up(groups, chunk_groups);
  }
};

// A tile's place: first pixel in the output's coordinates, and where its pixels stand in the input.
struct Tile {
  int64_t first;
  int64_t stored;       // vectors that are written
  bool is_flat;         // input pixels side by side, as the outputs are
  bool is_masked;
  int64_t start;        // flat: of the first input pixel, at kernel offset 0
  int32_t at[kWidth];   // else: of each input pixel
  float mask[kWidth];   // all bits set where there is a pixel
};

void locate(const Op& op, int64_t index, Tile& tile) {
  const View &in = op.in, &out = op.out;
  tile.first = index * kWidth;
  const int64_t left = divide_up(out.h * out.pitch - tile.first, Lanes::kSize);
  tile.stored = left < kTileVectors ? left : kTileVectors;
  tile.is_flat = op.stride[0] == 1 && op.stride[1] == 1 && in.pitch == out.pitch;
  tile.is_masked = out.pitch > out.w || tile.first + kWidth > out.h * out.pitch;
  tile.start = tile.first;
  if (tile.is_flat && !tile.is_masked) return;
  int64_t y = tile.first / out.pitch, x = tile.first % out.pitch;
  for (int i = 0; i < kWidth; ++i) {
    const bool inside = x < out.w && y < out.h;
    const uint32_t bits = inside ? ~0u : 0u;
    std::memcpy(&tile.mask[i], &bits, sizeof bits);
    const int64_t near_y = y < out.h ? y : out.h - 1, near_x = x < out.w ? x : out.w - 1;
    tile.at[i] = static_cast<int32_t>(near_y * op.stride[0] * in.pitch + near_x * op.stride[1]);
    if (++x == out.pitch) x = 0, ++y;
  }
}

// Copies the inputs of rows begin to end (kernel position, then channel) of a tile.
void gather(const Op& op, const float* image, const Tile& tile, int64_t begin, int64_t end,
            float* to) {
  for (int64_t row = begin; row < end;) {
    const int64_t position = row / op.in.c, channel = row % op.in.c;
    const int64_t y = position / op.kernel[1] * op.dilation[0] - op.padding[0];
    const int64_t x = position % op.kernel[1] * op.dilation[1] - op.padding[1];
    const float* from = image + channel * op.in.channel + y * op.in.pitch + x;
    const int64_t last = end - row < op.in.c - channel ? end : row + op.in.c - channel;
    for (; row < last; ++row, from += op.in.channel, to += kWidth) {
      if (tile.is_flat) {
        for (int p = 0; p < kTileVectors; ++p)
          Lanes::load(from + tile.start + p * Lanes::kSize).store(to + p * Lanes::kSize);
      } else {
        for (int i = 0; i < kWidth; ++i) to[i] = from[tile.at[i]];
      }
    }
  }
}

// Where the sums of kOutputs outputs come from and go to.
struct Group {
  const float* inputs;        // rows of the block
  const float* values;        // [weight][output]
  const uint16_t* rows;       // the same; dense: none
  int64_t count;              // weights of an output in this block
  const float* bias;          // of the first block, else null
  float* sums;                // [output][pixel], between blocks
  bool is_last;
  bool relu;
  const Tile* tile;
  const float* residual;      // of output 0 at the tile, or null
  int64_t residual_channel;
  float* out;
  int64_t out_channel;
  int64_t outputs;            // that exist
};

template <bool kIsDense>
void multiply(const Group& group) {
  Lanes sum[kOutputs][kTileVectors];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
    for (int p = 0; p < kTileVectors; ++p)
      sum[o][p] = group.bias ? Lanes::fill(group.bias[o])
                             : Lanes::load(group.sums + o * kWidth + p * Lanes::kSize);
  const float *values = group.values, *inputs = group.inputs;
  const uint16_t* rows = group.rows;
  for (int64_t i = 0; i < group.count; ++i) {
    if constexpr (kIsDense) {
      Lanes input[kTileVectors];
#pragma GCC unroll 8
      for (int p = 0; p < kTileVectors; ++p) input[p] = Lanes::load(inputs + p * Lanes::kSize);
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Lanes value = Lanes::fill(values[o]);
#pragma GCC unroll 8
        for (int p = 0; p < kTileVectors; ++p) sum[o][p] = sum[o][p].fma(value, input[p]);
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
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
    if (o >= group.outputs) break;
#pragma GCC unroll 8
    for (int p = 0; p < kTileVectors; ++p) {
      Lanes value = sum[o][p];
      const int64_t at = p * Lanes::kSize;
      if (p >= group.tile->stored) break;
      if (group.residual)
        value = value.plus(Lanes::load(group.residual + o * group.residual_channel + at));
      if (group.relu) value = value.relu();
      if (group.tile->is_masked) value = value.where(group.tile->mask + at);
      value.store(group.out + o * group.out_channel + at);
    }
  }
}

template <bool kIsDense>
void layer(const Op& op, const Run& run, int64_t item, float* scratch) {
  const Cut cut(op, run.threads);
  const int64_t tile_index = item % cut.tiles, image = item / cut.tiles % op.out.n;
  const int64_t chunk = item / cut.tiles / op.out.n;
  const int64_t begin = chunk * cut.chunk_groups;
  const int64_t end = begin + cut.chunk_groups < cut.groups ? begin + cut.chunk_groups : cut.groups;
  Tile tile;
  locate(op, tile_index, tile);
  const int64_t all_rows = op.in.c * op.kernel[0] * op.kernel[1];
  float* inputs = scratch;
  float* sums = scratch + op.block_rows * kWidth;
  const float* from = run.arena + op.in.offset + image * op.in.image;

  Group group;
  group.inputs = inputs;
  group.relu = op.relu;
  group.tile = &tile;
  group.residual_channel = op.other.channel;
  group.out_channel = op.out.channel;
  for (int64_t row = 0; row < all_rows; row += op.block_rows) {
    const int64_t rows = all_rows - row < op.block_rows ? all_rows - row : op.block_rows;
    gather(op, from, tile, row, row + rows, inputs);
    group.count = kIsDense ? rows : rows / op.m * op.n;
    group.is_last = row + rows == all_rows;
    const int64_t before = (kIsDense ? row : row / op.m * op.n) * cut.groups;  // weights / kOutputs
    for (int64_t g = begin; g < end; ++g) {
      const int64_t output = g * kOutputs, weight = (before + g * group.count) * kOutputs;
      group.values = op.values + weight;
      group.rows = kIsDense ? nullptr : op.rows + weight;
      group.bias = row == 0 ? op.bias + output : nullptr;
      group.sums = sums + (g - begin) * kOutputs * kWidth;
      group.residual = op.other.pitch == 0 ? nullptr
          : run.arena + op.other.offset + image * op.other.image + output * op.other.channel +
            tile.first;
      group.out = run.arena + op.out.offset + image * op.out.image + output * op.out.channel +
                  tile.first;
      group.outputs = op.out.c - output;
      multiply<kIsDense>(group);
    }
  }
  const int64_t last_output = end * kOutputs < op.out.c ? end * kOutputs : op.out.c;
  if (tile_index == cut.tiles - 1)
    for (int64_t c = begin * kOutputs; c < last_output; ++c)
      clear_gap(op.out, run, image, c, Lanes::kSize);
  if (item == 0) clear_front(op.out, run);
}

int64_t items(const Op& op, const Run& run) {
  if (op.kind != kLayer && op.kind != kDenseLayer) return move_items(op);
  const Cut cut(op, run.threads);
  return cut.tiles * op.out.n * cut.chunks;
}

void run_item(const Op& op, const Run& run, int64_t item, float* scratch) {
  switch (op.kind) {
    case kLayer: return layer<false>(op, run, item, scratch);
    case kDenseLayer: return layer<true>(op, run, item, scratch);
    default: return move_item(op, run, item, scratch);
  }
}

int64_t scratch(const Op& op) {
  if (op.kind != kLayer && op.kind != kDenseLayer) return move_scratch(op);
  return (op.block_rows + divide_up(op.out.c, kOutputs) * kOutputs) * kWidth;
}

}  // namespace

extern const Kernels KERNELS = {Lanes::kSize, kOutputs, items, run_item, scratch};

}  // namespace maxq
