// What moves activations without multiplying them: into and out of the layout of runtime.h, pooling,
// sums, upsampling. Plain loops over lines, which compilers turn into vectors.
//
// An item is kMoved channels of an image.
#pragma once

#include <cstring>

#include "lanes.h"
#include "runtime.h"

namespace maxq {
namespace {

constexpr int kWidth = kTileVectors * Lanes::kSize;  // pixels of a tile
constexpr int kWidthBits = Lanes::kSize == 8 ? 5 : 6;
static_assert(kWidth == 1 << kWidthBits);
constexpr int64_t kMoved = 16;
constexpr int kLine = 16;  // floats of a cache line

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

void prefetch(const float* at) { __builtin_prefetch(at); }

float* tile_of(const View& view, const Run& run, int64_t image, int64_t tile, int64_t channel) {
  return run.arena + view.offset + image * view.image + (tile * view.c + channel) * kWidth;
}

// Zeros behind an image.
void clear_margin(const View& view, const Run& run, int64_t image, int64_t begin, int64_t end) {
  for (int64_t tile = view.tiles; tile < view.tiles + view.margin; ++tile)
    std::memset(tile_of(view, run, image, tile, begin), 0, (end - begin) * kWidth * sizeof(float));
}

void clear_front(const View& view, const Run& run) {
  std::memset(run.arena + view.offset - view.front, 0, view.front * sizeof(float));
}

// Calls use(part of the row, its place in the row, its length) for the tiles that a row lies in.
template <typename Use>
void for_parts(const View& view, const Run& run, int64_t image, int64_t channel, int64_t y,
               int64_t width, const Use& use) {
  int64_t pixel = y * view.pitch;
  for (int64_t x = 0; x < width;) {
    const int64_t skipped = pixel & (kWidth - 1);
    const int64_t length = kWidth - skipped < width - x ? kWidth - skipped : width - x;
    use(tile_of(view, run, image, pixel >> kWidthBits, channel) + skipped, x, length);
    x += length;
    pixel += length;
  }
}

void copy(const float* from, float* to, int64_t count) {
  if (count == kWidth)  // without a call
    std::memcpy(to, from, kWidth * sizeof(float));
  else
    std::memcpy(to, from, count * sizeof(float));
}

void read_row(const View& view, const Run& run, int64_t image, int64_t c, int64_t y, float* line) {
  for_parts(view, run, image, c, y, view.w, [&](const float* part, int64_t x, int64_t length) {
    copy(part, line + x, length);
  });
}

// Writes a row and the zeros behind it; line holds view.pitch floats.
void write_row(const View& view, const Run& run, int64_t image, int64_t c, int64_t y, float* line) {
  for (int64_t x = view.w; x < view.pitch; ++x) line[x] = 0;
  for_parts(view, run, image, c, y, view.pitch, [&](float* part, int64_t x, int64_t length) {
    copy(line + x, part, length);
  });
}

// What a row holds with its padding, and what a window at its end reads.
int64_t line_size(const Op& op) {
  const int64_t wide = op.in.w > op.out.pitch ? op.in.w : op.out.pitch;
  return wide + 2 * op.padding[1] + op.kernel[1];
}

struct Item {
  int64_t image, begin, end;  // channels
  Item(const View& view, int64_t item) {
    const int64_t groups = (view.c + kMoved - 1) / kMoved;
    image = item / groups;
    begin = item % groups * kMoved;
    end = begin + kMoved < view.c ? begin + kMoved : view.c;
  }
};

// Row y of kMoved channels between here and the tensor outside, whose channels may lie side by side.
template <bool kIsImport>
void exchange(const Op& op, const Run& run, const Item& item, int64_t y, float* lines) {
  const View& view = kIsImport ? op.out : op.in;
  const int64_t *s = op.strides, size = view.pitch, count = item.end - item.begin;
  float* outside = run.externals[op.external] + item.image * s[0] + item.begin * s[1] + y * s[2];
  if (!kIsImport)
    for (int64_t c = 0; c < count; ++c)
      read_row(view, run, item.image, item.begin + c, y,
               s[3] == 1 ? outside + c * s[1] : lines + c * size);
  if (s[3] == 1 && kIsImport) {
    for (int64_t c = 0; c < count; ++c)
      std::memcpy(lines + c * size, outside + c * s[1], view.w * sizeof(float));
  } else if (s[3] != 1) {
    for (int64_t x = 0; x < view.w; ++x)
      for (int64_t c = 0; c < count; ++c) {
        float &inner = lines[c * size + x], &outer = outside[c * s[1] + x * s[3]];
        (kIsImport ? inner : outer) = kIsImport ? outer : inner;
      }
  }
  if (kIsImport)
    for (int64_t c = 0; c < count; ++c)
      write_row(view, run, item.image, item.begin + c, y, lines + c * size);
}

float larger(float a, float b) { return a > b || a != a ? a : b; }  // NaN wins, as in torch

// Row y of a channel: maximum over the rows of a window, then over its columns.
void pool_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, float* scratch) {
  const View &in = op.in, &out = op.out;
  const int64_t left = op.padding[1], wide = line_size(op);
  float *line = scratch, *most = scratch + wide, *row = scratch + 2 * wide;
  for (int64_t x = 0; x < wide; ++x) line[x] = -__builtin_inff();
  const int64_t top = y * op.stride[0] - op.padding[0];
  const int64_t end = top + op.kernel[0] < in.h ? top + op.kernel[0] : in.h;
  for (int64_t i = top < 0 ? 0 : top; i < end; ++i) {
    read_row(in, run, image, c, i, row);
    for (int64_t x = 0; x < in.w; ++x) line[left + x] = larger(row[x], line[left + x]);
  }
  const int64_t used = (out.w - 1) * op.stride[1] + 1;
  for (int64_t x = 0; x < used; ++x) most[x] = line[x];
  for (int64_t k = 1; k < op.kernel[1]; ++k)
    for (int64_t x = 0; x < used; ++x) most[x] = larger(line[x + k], most[x]);
  for (int64_t x = 0; x < out.w; ++x) row[x] = most[x * op.stride[1]];
  write_row(out, run, image, c, y, row);
}

void add_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, float* scratch) {
  float *line = scratch, *other = scratch + line_size(op);
  read_row(op.in, run, image, c, y, line);
  if (op.other.pitch) {
    read_row(op.other, run, image, c, y, other);
    for (int64_t x = 0; x < op.out.w; ++x) line[x] += other[x];
  }
  if (op.relu)
    for (int64_t x = 0; x < op.out.w; ++x) line[x] = line[x] < 0 ? 0.f : line[x];
  write_row(op.out, run, image, c, y, line);
}

// The nearest pixels of a smaller map, added to another if there is one.
void upsample_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y,
                  float* scratch) {
  const View &in = op.in, &out = op.out;
  float *line = scratch, *small = scratch + line_size(op);
  const auto near = [](int64_t i, int64_t from, int64_t to) {
    const auto index = static_cast<int64_t>(i * (static_cast<float>(from) / to));
    return index < from ? index : from - 1;
  };
  read_row(in, run, image, c, near(y, in.h, out.h), small);
  for (int64_t x = 0; x < out.w; ++x) line[x] = small[near(x, in.w, out.w)];
  if (op.other.pitch) {
    read_row(op.other, run, image, c, y, small);
    for (int64_t x = 0; x < out.w; ++x) line[x] += small[x];
  }
  write_row(out, run, image, c, y, line);
}

int64_t move_items(const Op& op) {
  const View& view = op.kind == kExport ? op.in : op.out;
  return view.n * ((view.c + kMoved - 1) / kMoved);
}

int64_t move_scratch(const Op& op) {
  if (op.kind == kImport || op.kind == kExport)
    return kMoved * (op.kind == kImport ? op.out : op.in).pitch;
  return 3 * line_size(op);
}

void move_item(const Op& op, const Run& run, int64_t number, float* scratch) {
  const View& view = op.kind == kExport ? op.in : op.out;
  const Item item(view, number);
  const auto row = op.kind == kMaxPool ? pool_row : op.kind == kAdd ? add_row : upsample_row;
  for (int64_t y = 0; y < view.h; ++y) {
    if (op.kind == kImport) exchange<true>(op, run, item, y, scratch);
    if (op.kind == kExport) exchange<false>(op, run, item, y, scratch);
    if (op.kind == kImport || op.kind == kExport) continue;
    for (int64_t c = item.begin; c < item.end; ++c) row(op, run, item.image, c, y, scratch);
  }
  if (op.kind == kExport) return;
  // Behind the last row: what is left of its tile, then whole tiles.
  const int64_t end = view.h * view.pitch;
  if (end & (kWidth - 1))
    for (int64_t c = item.begin; c < item.end; ++c)
      std::memset(tile_of(view, run, item.image, end >> kWidthBits, c) + (end & (kWidth - 1)), 0,
                  (kWidth - (end & (kWidth - 1))) * sizeof(float));
  clear_margin(view, run, item.image, item.begin, item.end);
  if (number == 0) clear_front(view, run);
}

}  // namespace
}  // namespace maxq
