// Layers whose lanes are pixels: how they are cut, and how the inputs of a tile come together. T is
// float or a byte.
#pragma once

#include "moves.h"

namespace maxq {
namespace {

constexpr int kVector = Lanes::kSize * sizeof(float);  // bytes
constexpr int kCacheLine = 64;

// How a layer is cut: tiles of pixels of an image, and chunks of groups of `outputs` outputs.
struct Cut {
  int64_t groups, tiles, chunks, chunk_groups;
  Cut(const Op& op, int64_t outputs, int64_t threads) {
    groups = divide_up(op.out.c, outputs);
    tiles = op.out.tiles;
    const int64_t all = tiles * op.out.n, wanted = threads > 1 ? 4 * threads : 1;
    chunks = all == 0 ? 1 : divide_up(wanted, all);
    if (chunks > divide_up(groups, 4)) chunks = divide_up(groups, 4);
    chunk_groups = divide_up(groups, chunks);
    chunks = divide_up(groups, chunk_groups);
  }
};

// A tile's place.
template <typename T>
struct Tile {
  int64_t first;        // pixel of the output
  bool is_flat;         // input pixels side by side, as the outputs are
  bool is_masked;
  int32_t at[kWidth];   // else: number of each input pixel, at kernel offset 0
  T mask[kWidth];       // all bits set where there is a pixel
};

template <typename T>
void locate(const Op& op, int64_t index, Tile<T>& tile) {
  const View &in = op.in, &out = op.out;
  tile.first = index * kWidth;
  tile.is_flat = op.stride[0] == 1 && op.stride[1] == 1 && in.pitch == out.pitch;
  tile.is_masked = out.pitch > out.w || tile.first + kWidth > out.h * out.pitch;
  if (tile.is_flat && !tile.is_masked) return;
  int64_t y = tile.first / out.pitch, x = tile.first % out.pitch;
  for (int i = 0; i < kWidth; ++i) {
    std::memset(&tile.mask[i], x < out.w && y < out.h ? 255 : 0, sizeof(T));
    const int64_t near_y = y < out.h ? y : out.h - 1, near_x = x < out.w ? x : out.w - 1;
    tile.at[i] = static_cast<int32_t>(near_y * op.stride[0] * in.pitch + near_x * op.stride[1]);
    if (++x == out.pitch) x = 0, ++y;
  }
}

// Whole vectors; up to one more than asked for.
template <typename T>
void copy_vectors(const T* from, T* to, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kVector)
    std::memcpy(reinterpret_cast<char*>(to) + i, reinterpret_cast<const char*>(from) + i, kVector);
}

// A row that is the end of one row and `skipped` elements of another; writes up to a vector more.
template <typename T>
struct Joined {
  int64_t skipped;
  explicit Joined(int64_t count) : skipped(count) {}
  void copy(const T* from, const T* next, T* to) const {
    copy_vectors(from + skipped, to, kWidth * sizeof(T));
    copy_vectors(next, to + kWidth - skipped, skipped * sizeof(T));
  }
};

// A row whose elements lie anywhere.
template <typename T>
struct Picked {
  const int32_t* at;
  explicit Picked(const int32_t* places) : at(places) {}
  void copy(const T* from, T* to) const {
    for (int i = 0; i < kWidth; ++i) to[i] = from[at[i]];
  }
};

// Where the tiles of an image of the input are: tile i at place (first + i) & ring.
template <typename T>
struct Source {
  const T* places;
  int32_t first, ring;
  Source(const View& view, const Run& run, int64_t image) {
    const bool is_ring = view.ring >= 0;
    places = is_ring ? reinterpret_cast<const T*>(run.arena + view.offset)
                     : tile_of<T>(view, run, image, 0, 0);
    first = is_ring ? static_cast<int32_t>(image * (view.tiles + view.margin) & view.ring) : 0;
    ring = static_cast<int32_t>(view.ring);
  }
  int32_t place(int32_t tile) const { return (first + tile) & ring; }
};

// All rows of a tile by lines of the input, where that is faster; see tiles_int8.h.
template <typename T>
struct Lines {
  static bool fits(const Op&) { return false; }
  static void gather(const Op&, const Source<T>&, int64_t, T*) {}
};

// Copies the inputs of rows begin to end (kernel position, then channel) of a tile; writes up to a
// row more.
template <typename T>
void gather(const Op& op, const Source<T>& source, const Tile<T>& tile, int64_t begin, int64_t end,
            T* to) {
  const int64_t size = op.in.c * kWidth;  // of a tile in the input
  for (int64_t row = begin; row < end;) {
    const int64_t position = row / op.in.c, channel = row % op.in.c;
    const int64_t y = position / op.kernel[1] * op.dilation[0] - op.padding[0];
    const int64_t x = position % op.kernel[1] * op.dilation[1] - op.padding[1];
    const int64_t last = end - row < op.in.c - channel ? end : row + op.in.c - channel;
    const T* const places = source.places + channel * kWidth;
    if (tile.is_flat) {
      // The end of one tile and the beginning of the next.
      const int64_t pixel = tile.first + y * op.in.pitch + x;
      const int64_t index = floor_divide(pixel, kWidth), skipped = pixel - index * kWidth;
      const T* from = places + source.place(static_cast<int32_t>(index)) * size;
      if (skipped == 0) {
        for (; row < last; ++row, from += kWidth, to += kWidth)
          copy_vectors(from, to, kWidth * sizeof(T));
      } else {
        const T* next = places + source.place(static_cast<int32_t>(index) + 1) * size;
        const Joined<T> joined(skipped);
        for (; row < last; ++row, from += kWidth, next += kWidth, to += kWidth)
          joined.copy(from, next, to);
      }
    } else {
      int32_t at[kWidth];
      const int32_t shift = static_cast<int32_t>(y * op.in.pitch + x);
      for (int i = 0; i < kWidth; ++i) {
        const int32_t pixel = tile.at[i] + shift;  // >> and & round down, also below 0
        at[i] = source.place(pixel >> kWidthBits) * static_cast<int32_t>(size) +
                (pixel & (kWidth - 1));
      }
      const Picked<T> picked(at);
      const T* from = places;
      for (; row < last; ++row, from += kWidth, to += kWidth) picked.copy(from, to);
    }
  }
}

// What is computed at a time: some outputs of a tile, from a block of inputs.
template <typename T, typename Weight, typename Sum>
struct Group {
  const Op* op;
  const Tile<T>* tile;
  const T* inputs;            // rows of the block
  const Weight* values;       // see arrange.py
  const uint16_t* rows;       // the same; dense: none
  int64_t count;              // weights of an output in this block
  int64_t output;             // the first
  Sum* sums;                  // [output][pixel], between blocks
  bool is_first, is_last;     // block
  const T* residual;          // of that output, or null
  char* out;                  // of that output
};

// A kernel has T, Weight and Sum; kOutputs, which it computes side by side; rows, which it wants
// memory for; prepare, which may rearrange a block of inputs into that memory; weights, of an output
// among so many rows; multiply.
template <typename Kernel>
void layer(const Op& op, const Run& run, const Step& step, int64_t item, float* scratch) {
  using T = typename Kernel::T;
  constexpr int kOutputs = Kernel::kOutputs;
  const Cut cut(op, kOutputs, run.threads);
  const int64_t unit = step.begin + item % (step.end - step.begin);
  const int64_t tile_index = unit % cut.tiles, image = unit / cut.tiles;
  const int64_t chunk = item / (step.end - step.begin);
  const int64_t begin = chunk * cut.chunk_groups;
  const int64_t end = begin + cut.chunk_groups < cut.groups ? begin + cut.chunk_groups : cut.groups;
  Tile<T> tile;
  locate(op, tile_index, tile);
  const int64_t all_rows = op.in.c * op.kernel[0] * op.kernel[1];
  const bool is_direct = tile.is_flat && op.kernel[0] == 1 && op.kernel[1] == 1 &&
                         op.padding[0] == 0 && op.padding[1] == 0;
  T* inputs = reinterpret_cast<T*>(scratch);
  auto* sums = reinterpret_cast<typename Kernel::Sum*>(inputs + Kernel::rows(op) * kWidth);
  const Source<T> source(op.in, run, image);

  typename Kernel::Group group;
  group.op = &op;
  group.tile = &tile;
  for (int64_t row = 0; row < all_rows; row += op.block_rows) {
    const int64_t rows = all_rows - row < op.block_rows ? all_rows - row : op.block_rows;
    if (is_direct) {
      group.inputs = tile_of<T>(op.in, run, image, tile_index, row);
      const auto* bytes = reinterpret_cast<const char*>(group.inputs);
      for (int64_t i = 0; i < rows * kWidth * static_cast<int64_t>(sizeof(T)); i += kCacheLine)
        __builtin_prefetch(bytes + i);
    } else {
      if (Lines<T>::fits(op) && rows == all_rows)
        Lines<T>::gather(op, source, tile.first, inputs);
      else
        gather(op, source, tile, row, row + rows, inputs);
      group.inputs = inputs;
    }
    Kernel::prepare(group, inputs, rows);
    group.count = Kernel::weights(op, rows);
    group.is_first = row == 0;
    group.is_last = row + rows == all_rows;
    // Weights before this block, of one output.
    const int64_t before = row / op.block_rows * Kernel::weights(op, op.block_rows);
    for (int64_t g = begin; g < end; ++g) {
      const int64_t weight = (before * cut.groups + g * group.count) * kOutputs;
      group.output = g * kOutputs;
      group.values = static_cast<const typename Kernel::Weight*>(op.values) + weight;
      group.rows = static_cast<const uint16_t*>(op.rows) + (Kernel::kIsDense ? 0 : weight);
      group.sums = sums + (g - begin) * kOutputs * kWidth;
      group.residual = op.other.pitch == 0 ? nullptr
                       : tile_of<T>(op.other, run, image, tile_index, group.output);
      group.out = op.out.element == 1
                      ? tile_of<char>(op.out, run, image, tile_index, group.output)
                      : reinterpret_cast<char*>(
                            tile_of<float>(op.out, run, image, tile_index, group.output));
      Kernel::multiply(group);
    }
  }
  const int64_t last = end * kOutputs < op.out.c ? end * kOutputs : op.out.c;
  if (tile_index == cut.tiles - 1) {
    const auto clear = op.out.element == 1 ? clear_margin<uint8_t> : clear_margin<float>;
    clear(op.out, run, image, begin * kOutputs, last);
  }
  if (unit == 0 && chunk == 0) clear_front(op.out, run);
}

}  // namespace
}  // namespace maxq
