// What moves activations without multiplying them: into and out of the layout of runtime.h, pooling,
// sums, upsampling. Plain loops over lines, which compilers turn into vectors; T is float or a byte.
//
// An item is kMoved channels of some rows.
#pragma once

#include <cstring>

#include "lanes.h"
#include "values.h"

namespace maxq {
namespace {

constexpr int kWidth = kTileVectors * Lanes::kSize;  // pixels of a tile
constexpr int kWidthBits = Lanes::kSize == 8 ? 5 : 6;
static_assert(kWidth == 1 << kWidthBits);
constexpr int64_t kMoved = 16, kMovedRows = 4;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

template <typename T>
T* tile_of(const View& view, const Run& run, int64_t image, int64_t tile, int64_t channel) {
  const int64_t place = (image * (view.tiles + view.margin) + tile) & view.ring;
  return reinterpret_cast<T*>(run.arena + view.offset) + (place * view.c + channel) * kWidth;
}

void clear(const View& view, void* from, int64_t bytes) {
  std::memset(from, static_cast<int>(view.zero), bytes);
}

// Zeros behind an image.
template <typename T>
void clear_margin(const View& view, const Run& run, int64_t image, int64_t begin, int64_t end) {
  for (int64_t tile = view.tiles; tile < view.tiles + view.margin; ++tile)
    clear(view, tile_of<T>(view, run, image, tile, begin), (end - begin) * kWidth * sizeof(T));
}

void clear_front(const View& view, const Run& run) {
  const int64_t size = view.c * kWidth * view.element;
  for (int64_t tile = -view.front / size; tile < 0; ++tile)
    clear(view, run.arena + view.offset + (tile & view.ring) * size, size);
}

// What stands around channel c: of an image, its own byte.
View own_view(const Op& op, int64_t c) {
  View view = op.out;
  if (op.scales) view.zero = ChannelScales(op)[c].out_zero;
  return view;
}

// The same where each channel of the bytes may have a zero of its own.
template <typename T>
void clear_own_front(const Op& op, const Run& run) {
  const View& view = op.out;
  if (!op.scales) return clear_front(view, run);
  const int64_t tiles = view.front / (view.c * kWidth * static_cast<int64_t>(sizeof(T)));
  for (int64_t tile = -tiles; tile < 0; ++tile)
    for (int64_t c = 0; c < view.c; ++c)
      clear(own_view(op, c), tile_of<T>(view, run, 0, tile, c), kWidth * sizeof(T));
}

// Calls use(part of the row, its place in the row, its length) for the tiles that a row lies in.
template <typename T, typename Use>
void for_parts(const View& view, const Run& run, int64_t image, int64_t channel, int64_t y,
               int64_t width, const Use& use) {
  int64_t pixel = y * view.pitch;
  for (int64_t x = 0; x < width;) {
    const int64_t skipped = pixel & (kWidth - 1);
    const int64_t length = kWidth - skipped < width - x ? kWidth - skipped : width - x;
    use(tile_of<T>(view, run, image, pixel >> kWidthBits, channel) + skipped, x, length);
    x += length;
    pixel += length;
  }
}

template <typename T>
void copy(const T* from, T* to, int64_t count) {
  if (count == kWidth)  // without a call
    std::memcpy(to, from, kWidth * sizeof(T));
  else
    std::memcpy(to, from, count * sizeof(T));
}

template <typename T>
void read_row(const View& view, const Run& run, int64_t image, int64_t c, int64_t y, T* line) {
  for_parts<T>(view, run, image, c, y, view.w, [&](const T* part, int64_t x, int64_t length) {
    copy(part, line + x, length);
  });
}

// Writes a row and the zeros behind it; line holds view.pitch elements.
template <typename T>
void write_row(const View& view, const Run& run, int64_t image, int64_t c, int64_t y, T* line) {
  const int64_t pitch = view.pitch;
  for (int64_t x = view.w; x < pitch; ++x) line[x] = static_cast<T>(view.zero);
  for_parts<T>(view, run, image, c, y, view.pitch, [&](T* part, int64_t x, int64_t length) {
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
  int64_t row, last_row;      // of all images
  Item(const View& view, const Step& step, int64_t rows, int64_t item) {
    const int64_t groups = divide_up(view.c, kMoved);
    begin = item % groups * kMoved;
    end = begin + kMoved < view.c ? begin + kMoved : view.c;
    row = step.begin + item / groups * rows;
    last_row = row + rows < step.end ? row + rows : step.end;
  }
};

// Row y of kMoved channels between here and the tensor outside, whose channels may lie side by side.
template <typename T, bool kIsImport>
void exchange(const Op& op, const Run& run, const Item& item, int64_t y, T* lines) {
  const View& view = kIsImport ? op.out : op.in;
  const int64_t s[4] = {op.strides[0], op.strides[1], op.strides[2], op.strides[3]};
  const int64_t size = view.pitch, width = view.w, count = item.end - item.begin;
  const ChannelScales scales(op);
  float* outside = run.externals[op.external] + item.image * s[0] + item.begin * s[1] + y * s[2];
  const auto row = [&](int64_t c, T* line) {
    if (kIsImport)
      write_row(own_view(op, item.begin + c), run, item.image, item.begin + c, y, line);
    else
      read_row(view, run, item.image, item.begin + c, y, line);
  };
  if constexpr (sizeof(T) == sizeof(float) && !kIsImport) {
    if (s[3] == 1) {
      for (int64_t c = 0; c < count; ++c) row(c, outside + c * s[1]);
      return;
    }
  }
  if (!kIsImport)
    for (int64_t c = 0; c < count; ++c) row(c, lines + c * size);
  const auto across = [](const Scales& own, T& inner, float& outer) {
    if constexpr (kIsImport)
      convert(own, outer, inner);
    else
      convert(own, inner, outer);
  };
  if (s[3] == 1) {
    for (int64_t c = 0; c < count; ++c) {
      const Scales own = scales[item.begin + c];
      for (int64_t x = 0; x < width; ++x) across(own, lines[c * size + x], outside[c * s[1] + x]);
    }
  } else {
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < count; ++c)
        across(scales[item.begin + c], lines[c * size + x], outside[c * s[1] + x * s[3]]);
  }
  if (kIsImport)
    for (int64_t c = 0; c < count; ++c) row(c, lines + c * size);
}

// Row y of a channel: maximum over the rows of a window, then over its columns.
template <typename T>
void pool_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, T* scratch) {
  const View &in = op.in, &out = op.out;
  // Numbers, since bytes that are written may be those of `op`.
  const int64_t left = op.padding[1], wide = line_size(op), width = in.w, kernel = op.kernel[1];
  const int64_t stride = op.stride[1], count = out.w, used = (count - 1) * stride + 1;
  T *line = scratch, *most = scratch + wide, *row = scratch + 2 * wide;
  for (int64_t x = 0; x < left; ++x) line[x] = Element<T>::kLowest;
  for (int64_t x = left + width; x < wide; ++x) line[x] = Element<T>::kLowest;
  const int64_t top = y * op.stride[0] - op.padding[0], first = top < 0 ? 0 : top;
  const int64_t end = top + op.kernel[0] < in.h ? top + op.kernel[0] : in.h;
  for (int64_t i = first; i < end; ++i)
    for_parts<T>(in, run, image, c, i, width, [&](const T* part, int64_t x, int64_t length) {
      T* to = line + left + x;
      if (i == first) return copy(part, to, length);
      if (length == kWidth)  // without a test whether it ends
        for (int64_t j = 0; j < kWidth; ++j) to[j] = larger(part[j], to[j]);
      else
        for (int64_t j = 0; j < length; ++j) to[j] = larger(part[j], to[j]);
    });
  if (kernel == 3)  // most often: in one go
    for (int64_t x = 0; x < used; ++x) most[x] = larger(line[x + 2], larger(line[x + 1], line[x]));
  else
    for (int64_t x = 0; x < used; ++x) most[x] = line[x];
  for (int64_t k = 1; k < kernel && kernel != 3; ++k)
    for (int64_t x = 0; x < used; ++x) most[x] = larger(line[x + k], most[x]);
  if (stride == 2)  // most often: known, it becomes vectors
    for (int64_t x = 0; x < count; ++x) row[x] = most[2 * x];
  else
    for (int64_t x = 0; x < count; ++x) row[x] = most[x * stride];
  write_row(out, run, image, c, y, row);
}

template <typename T>
void add_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, T* scratch) {
  T *line = scratch, *other = scratch + line_size(op);
  const Scales scales(op);
  const int64_t width = op.out.w;
  read_row(op.in, run, image, c, y, line);
  if (op.other.pitch) {
    read_row(op.other, run, image, c, y, other);
    for (int64_t x = 0; x < width; ++x) line[x] = plus(scales, line[x], other[x]);
  }
  if (op.relu)
    for (int64_t x = 0; x < width; ++x) line[x] = relu(scales, line[x]);
  write_row(op.out, run, image, c, y, line);
}

// The nearest pixels of a smaller map, added to another if there is one.
template <typename T>
void upsample_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, T* scratch) {
  const View &in = op.in, &out = op.out;
  T *line = scratch, *small = scratch + line_size(op);
  const Scales scales(op);
  const int64_t width = out.w;
  read_row(in, run, image, c, nearest(y, in.h, out.h), small);
  const int64_t from = in.w;
  for (int64_t x = 0; x < width; ++x) line[x] = small[nearest(x, from, width)];
  if (op.other.pitch) {
    read_row(op.other, run, image, c, y, small);
    for (int64_t x = 0; x < width; ++x) line[x] = plus(scales, line[x], small[x]);
  }
  write_row(out, run, image, c, y, line);
}

// Depth to space: how many rows of its input are worked on at a time, and elements of those, or of
// what becomes of them.
int64_t depth_rows(const Op& op) {
  const int64_t rows = 256 / (op.stride[0] * op.out.pitch);
  return rows > 1 ? rows : 1;
}
int64_t depth_size(const Op& op) {
  const int64_t wide = op.stride[0] * op.out.pitch;
  return depth_rows(op) * (op.in.pitch > wide ? op.in.pitch : wide);
}

// A block of pixels from the channels of one: channel (i * block width + j) * out.c + c of a pixel
// becomes channel c of the block's pixel (i, j). Here so many rows of the input from y on.
template <typename T>
void depth_to_space(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, int64_t rows,
                    T* scratch) {
  const View &in = op.in, &out = op.out;
  const int64_t high = op.stride[0], wide = op.stride[1], width = in.w, size = depth_size(op);
  const int64_t pitch = out.pitch, in_pitch = in.pitch;
  T *lines = scratch, *even = scratch + size, *odd = even + size;
  std::memset(lines, static_cast<int>(out.zero), rows * high * pitch * sizeof(T));
  const auto read = [&](int64_t channel, T* to) {
    for_parts<T>(in, run, image, channel, y, rows * in_pitch,
                 [&](const T* part, int64_t x, int64_t length) { copy(part, to + x, length); });
  };
  for (int64_t i = 0; i < high; ++i)
    for (int64_t j = 0; j < wide; j += 2) {
      const bool has_odd = j + 1 < wide;
      read((i * wide + j) * out.c + c, even);
      if (has_odd) read((i * wide + j + 1) * out.c + c, odd);
      for (int64_t row = 0; row < rows; ++row) {
        T* line = lines + (row * high + i) * pitch + j;
        const T *a = even + row * in_pitch, *b = odd + row * in_pitch;
        if (wide == 2)  // most often: known, it becomes vectors
          for (int64_t x = 0; x < width; ++x) line[2 * x] = a[x], line[2 * x + 1] = b[x];
        else
          for (int64_t x = 0; x < width; ++x) {
            line[x * wide] = a[x];
            if (has_odd) line[x * wide + 1] = b[x];
          }
      }
    }
  for_parts<T>(out, run, image, c, y * high, rows * high * pitch,
               [&](T* part, int64_t x, int64_t length) { copy(lines + x, part, length); });
}

// From floats to bytes, or back.
template <typename T>
void convert_row(const Op& op, const Run& run, int64_t image, int64_t c, int64_t y, T* scratch) {
  using From = typename Element<T>::Other;
  const int64_t width = op.out.w;
  const Scales scales = ChannelScales(op)[c];
  From* from = reinterpret_cast<From*>(scratch);
  T* line = reinterpret_cast<T*>(reinterpret_cast<float*>(scratch) + line_size(op));
  read_row(op.in, run, image, c, y, from);
  for (int64_t x = 0; x < width; ++x) convert(scales, from[x], line[x]);
  write_row(own_view(op, c), run, image, c, y, line);
}

// Of an item.
int64_t moved_rows(const Op& op) {
  return op.kind == kDepthToSpace ? depth_rows(op) * op.stride[0] : kMovedRows;
}

int64_t move_items(const Op& op, const Step& step) {
  const View& view = op.kind == kExport ? op.in : op.out;
  return divide_up(view.c, kMoved) * divide_up(step.end - step.begin, moved_rows(op));
}

int64_t move_scratch(const Op& op) {
  if (op.kind == kImport || op.kind == kExport)
    return kMoved * (op.kind == kImport ? op.out : op.in).pitch;
  if (op.kind == kDepthToSpace) return 3 * depth_size(op);
  return 3 * line_size(op);
}

// T: of what is inside, of the result where both are.
template <typename T>
void move_item(const Op& op, const Run& run, const Step& step, int64_t number, T* scratch) {
  const View& view = op.kind == kExport ? op.in : op.out;
  Item item(view, step, moved_rows(op), number);
  const auto row = op.kind == kMaxPool   ? pool_row<T>
                   : op.kind == kAdd     ? add_row<T>
                   : op.kind == kConvert ? convert_row<T>
                                         : upsample_row<T>;
  if (op.kind != kExport && item.row == 0 && item.begin == 0) clear_own_front<T>(op, run);
  int64_t rows = 1;
  for (; item.row < item.last_row; item.row += rows) {
    item.image = item.row / view.h;
    const int64_t y = item.row % view.h;
    if (op.kind == kImport) {
      exchange<T, true>(op, run, item, y, scratch);
    } else if (op.kind == kExport) {
      exchange<T, false>(op, run, item, y, scratch);
    } else if (op.kind == kDepthToSpace) {
      const int64_t high = op.stride[0], left = item.last_row - item.row;
      rows = left < view.h - y ? left : view.h - y;
      for (int64_t c = item.begin; c < item.end; ++c)
        depth_to_space(op, run, item.image, c, y / high, rows / high, scratch);
    } else {
      for (int64_t c = item.begin; c < item.end; ++c) row(op, run, item.image, c, y, scratch);
    }
    if (op.kind == kExport || y + rows < view.h) continue;
    // Behind the last row: what is left of its tile, then whole tiles.
    const int64_t end = view.h * view.pitch;
    for (int64_t c = item.begin; c < item.end; ++c) {
      const View own = own_view(op, c);
      if (end & (kWidth - 1))
        clear(own, tile_of<T>(view, run, item.image, end >> kWidthBits, c) + (end & (kWidth - 1)),
              (kWidth - (end & (kWidth - 1))) * sizeof(T));
      clear_margin<T>(own, run, item.image, c, c + 1);
    }
  }
}

}  // namespace
}  // namespace maxq
