// What moves.h does, for activations in channels-last: into and out of the layout of runtime.h (a
// tile is a pixel), pooling, sums, upsampling. An item is a piece of a row; T is float or a byte.
#pragma once

#include <cstring>

#include "lanes.h"
#include "values.h"

namespace maxq {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T* pixel_of(const View& view, const Run& run, int64_t image, int64_t y, int64_t x) {
  return reinterpret_cast<T*>(run.arena + view.offset + image * view.image) +
         (y * view.pitch + x) * view.size;
}

template <typename T>
void clear(const View& view, T* from, int64_t count) {
  std::memset(from, static_cast<int>(view.zero), count * sizeof(T));
}

// Calls use(elements, their count) for what lies around all images.
template <typename T, typename Use>
void for_border(const View& view, const Run& run, const Use& use) {
  const int64_t size = view.size;
  use(reinterpret_cast<T*>(run.arena + view.offset - view.front),
      view.front / static_cast<int64_t>(sizeof(T)));
  for (int64_t image = 0; image < view.n; ++image) {
    if (view.pitch > view.w)
      for (int64_t y = 0; y < view.h; ++y)
        use(pixel_of<T>(view, run, image, y, view.w), (view.pitch - view.w) * size);
    use(pixel_of<T>(view, run, image, view.h, 0), view.margin * size);
  }
}

// Zeros there.
template <typename T>
void clear_border(const View& view, const Run& run) {
  for_border<T>(view, run, [&](T* from, int64_t count) { clear(view, from, count); });
}

// The same where each channel of the bytes has a zero of its own.
void clear_own_border(const Op& op, const Run& run) {
  const int64_t size = op.out.size;
  for_border<uint8_t>(op.out, run, [&](uint8_t* from, int64_t count) {
    clear(op.out, from, count);
    for (int64_t c = 0; c < op.out.c; ++c) {
      const auto zero = static_cast<uint8_t>(ChannelScales(op)[c].out_zero);
      for (int64_t i = c; i < count; i += size) from[i] = zero;
    }
  });
}

struct Piece {
  static constexpr int64_t kLength = 64;
  int64_t image, y, begin, end;  // pixels of a row
  Piece(const View& view, const Step& step, int64_t item) {
    const int64_t pieces = divide_up(view.w, kLength), row = step.begin + item / pieces;
    image = row / view.h;
    y = row % view.h;
    begin = item % pieces * kLength;
    end = begin + kLength < view.w ? begin + kLength : view.w;
  }
};

// Scales of 16 channels, or less, from c on.
struct LaneScales {
  Lanes factor, offset;
  LaneScales(const ChannelScales& of, int64_t c, int64_t count)
      : factor(of.factors ? Lanes::load(of.factors + c, count) : Lanes::fill(of.whole.factor)),
        offset(of.factors ? Lanes::load(of.offsets + c, count) : Lanes::fill(of.whole.offset)) {}
};

// As many channels of a pixel, as floats that are its own.
template <typename T>
Lanes load_pixel(const T* from, int64_t count, const View& view, const LaneScales& scales) {
  if constexpr (sizeof(T) == 1)
    return Lanes::load(from, count, static_cast<int32_t>(view.zero)).times(scales.factor);
  else
    return Lanes::load(from, count);
}
template <typename T>
void store_pixel(Lanes value, T* to, int64_t count, const LaneScales& scales) {
  if constexpr (sizeof(T) == 1) value = multiplied(value, scales.factor, scales.offset);
  value.store(to, count);
}

// Pixels of an image whose channels are bytes of a quad; `plane`: from channel to channel outside.
void import_quads(const ChannelScales& scales, const float* outside, int64_t plane, uint8_t* to,
                  int64_t count, int64_t channels) {
  int64_t x = 0;
  for (; x + Lanes::kSize <= count; x += Lanes::kSize) {
    Lanes lines[4];
    for (int64_t c = 0; c < channels; ++c)
      lines[c] = multiplied(Lanes::load(outside + c * plane + x), Lanes::fill(scales[c].factor),
                            Lanes::fill(scales[c].offset));
    store_quads(lines, channels, to + 4 * x);
  }
  for (; x < count; ++x)
    for (int64_t c = 0; c < channels; ++c) convert(scales[c], outside[c * plane + x], to[4 * x + c]);
}

// Pixels between here and planes outside, 16 of 16 channels at a time.
template <typename T>
void exchange_planes(const Op& op, const View& view, float* outside, T* inside, int64_t count) {
  constexpr int64_t kSize = Lanes::kSize;
  const int64_t plane = op.strides[1];
  Lanes lines[kSize];
  for (int64_t c = 0; c < view.c; c += kSize) {
    const int64_t channels = view.c - c < kSize ? view.c - c : kSize;
    const LaneScales scales(ChannelScales(op), c, channels);
    for (int64_t x = 0; x < count; x += kSize) {
      const int64_t pixels = count - x < kSize ? count - x : kSize;
      float* planes = outside + c * plane + x;
      T* here = inside + x * view.size + c;
      // Planes lie too far apart for the processor to see what is written next.
      const float* next = planes + (x + kSize < count ? kSize : kSize * plane - x);
      if (op.kind == kExport)
        for (int64_t i = 0; i < kSize && c + i < view.c; ++i)
          __builtin_prefetch(next + i * plane, 1);
      if (op.kind == kImport) {
        for (int64_t i = 0; i < kSize; ++i)
          lines[i] = i < channels ? Lanes::load(planes + i * plane, pixels) : Lanes::fill(0);
        transpose(lines);
        for (int64_t i = 0; i < pixels; ++i)
          store_pixel(lines[i], here + i * view.size, channels, scales);
      } else {
        for (int64_t i = 0; i < kSize; ++i)
          lines[i] = i < pixels ? load_pixel(here + i * view.size, channels, view, scales)
                                : Lanes::fill(0);
        transpose(lines);
        for (int64_t i = 0; i < channels; ++i) lines[i].store(planes + i * plane, pixels);
      }
    }
  }
}

// The same where a pixel's channels lie side by side outside, too.
template <typename T>
void exchange_pixels(const Op& op, const View& view, float* outside, T* inside, int64_t count) {
  const ChannelScales all(op);
  for (int64_t x = 0; x < count; ++x, outside += op.strides[3], inside += view.size)
    for (int64_t c = 0; c < view.c; c += Lanes::kSize) {
      const int64_t channels = view.c - c < Lanes::kSize ? view.c - c : Lanes::kSize;
      const LaneScales scales(all, c, channels);
      if (op.kind == kImport)
        store_pixel(Lanes::load(outside + c, channels), inside + c, channels, scales);
      else
        load_pixel(inside + c, channels, view, scales).store(outside + c, channels);
    }
}

template <typename T>
void exchange_row(const Op& op, const Run& run, const Piece& at) {
  const bool is_import = op.kind == kImport;
  const View& view = is_import ? op.out : op.in;
  const int64_t *s = op.strides, size = view.size, count = at.end - at.begin;
  float* outside = run.externals[op.external] + at.image * s[0] + at.y * s[2] + at.begin * s[3];
  T* inside = pixel_of<T>(view, run, at.image, at.y, at.begin);
  if (s[1] == 1) {
    exchange_pixels(op, view, outside, inside, count);
  } else if (s[3] == 1) {
    if constexpr (sizeof(T) == 1)
      if (is_import && size == 4)
        return import_quads(ChannelScales(op), outside, s[1], inside, count, view.c);
    exchange_planes(op, view, outside, inside, count);
  } else {
    const ChannelScales scales(op);
    for (int64_t x = 0; x < count; ++x)
      for (int64_t c = 0; c < view.c; ++c) {
        T& inner = inside[x * size + c];
        float& outer = outside[x * s[3] + c * s[1]];
        is_import ? convert(scales[c], outer, inner) : convert(scales[c], inner, outer);
      }
  }
  if (is_import && size > view.c)
    for (int64_t x = 0; x < count; ++x)
      clear(view, inside + x * size + view.c, size - view.c);
}

template <typename T>
void pool_row(const Op& op, const Run& run, const Piece& at) {
  const View &in = op.in, &out = op.out;
  const int64_t size = out.size;
  for (int64_t x = at.begin; x < at.end; ++x) {
    T* to = pixel_of<T>(out, run, at.image, at.y, x);
    bool is_first = true;
    for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
      for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
        const int64_t from_y = at.y * op.stride[0] + ky - op.padding[0];
        const int64_t from_x = x * op.stride[1] + kx - op.padding[1];
        if (from_y < 0 || from_y >= in.h || from_x < 0 || from_x >= in.w) continue;
        const T* from = pixel_of<T>(in, run, at.image, from_y, from_x);
        if (is_first)
          std::memcpy(to, from, size * sizeof(T));
        else
          for (int64_t c = 0; c < size; ++c) to[c] = larger(from[c], to[c]);
        is_first = false;
      }
  }
}

template <typename T>
void add_row(const Op& op, const Run& run, const Piece& at) {
  const int64_t count = (at.end - at.begin) * op.out.size;
  const Scales scales(op);
  const bool has_relu = op.relu;
  const T* from = pixel_of<T>(op.in, run, at.image, at.y, at.begin);
  const T* other = op.other.pitch ? pixel_of<T>(op.other, run, at.image, at.y, at.begin) : nullptr;
  T* to = pixel_of<T>(op.out, run, at.image, at.y, at.begin);
  for (int64_t i = 0; i < count; ++i) {
    const T sum = other ? plus(scales, from[i], other[i]) : from[i];
    to[i] = has_relu ? relu(scales, sum) : sum;
  }
}

// The nearest pixels of a smaller map, added to another if there is one.
template <typename T>
void upsample_row(const Op& op, const Run& run, const Piece& at) {
  const View &in = op.in, &out = op.out;
  const int64_t size = out.size, y = nearest(at.y, in.h, out.h);
  const Scales scales(op);
  for (int64_t x = at.begin; x < at.end; ++x) {
    const T* from = pixel_of<T>(in, run, at.image, y, nearest(x, in.w, out.w));
    const T* other = op.other.pitch ? pixel_of<T>(op.other, run, at.image, at.y, x) : nullptr;
    T* to = pixel_of<T>(out, run, at.image, at.y, x);
    for (int64_t c = 0; c < size; ++c) to[c] = other ? plus(scales, from[c], other[c]) : from[c];
  }
}

// A block of pixels from the channels of one: channel (i * block width + j) * out.c + c of a pixel
// becomes channel c of the block's pixel (i, j).
template <typename T>
void depth_row(const Op& op, const Run& run, const Piece& at) {
  const int64_t size = op.out.size, count = op.out.c;
  const int64_t high = op.stride[0], wide = op.stride[1];
  for (int64_t x = at.begin; x < at.end; ++x) {
    const T* from = pixel_of<T>(op.in, run, at.image, at.y / high, x / wide) +
                    (at.y % high * wide + x % wide) * count;
    T* to = pixel_of<T>(op.out, run, at.image, at.y, x);
    std::memcpy(to, from, count * sizeof(T));
    clear(op.out, to + count, size - count);
  }
}

// From floats to bytes, or back.
template <typename T>
void convert_row(const Op& op, const Run& run, const Piece& at) {
  using From = typename Element<T>::Other;
  const ChannelScales scales(op);
  const int64_t size = op.out.size;
  for (int64_t x = at.begin; x < at.end; ++x) {
    const From* from = pixel_of<From>(op.in, run, at.image, at.y, x);
    T* to = pixel_of<T>(op.out, run, at.image, at.y, x);
    for (int64_t c = 0; c < op.out.c; ++c) convert(scales[c], from[c], to[c]);
    clear(op.out, to + op.out.c, size - op.out.c);
  }
}

int64_t row_items(const Op& op, const Step& step) {
  const View& view = op.kind == kExport ? op.in : op.out;
  return (step.end - step.begin) * divide_up(view.w, Piece::kLength);
}

// T: of what is inside, of the result where both are.
template <typename T>
void row_item_of(const Op& op, const Run& run, const Step& step, int64_t item) {
  const Piece piece(op.kind == kExport ? op.in : op.out, step, item);
  switch (op.kind) {
    case kMaxPool: pool_row<T>(op, run, piece); break;
    case kAdd: add_row<T>(op, run, piece); break;
    case kUpsample: upsample_row<T>(op, run, piece); break;
    case kConvert: convert_row<T>(op, run, piece); break;
    case kDepthToSpace: depth_row<T>(op, run, piece); break;
    default: exchange_row<T>(op, run, piece);
  }
  if (step.begin + item == 0 && op.kind != kExport)
    op.scales ? clear_own_border(op, run) : clear_border<T>(op.out, run);
}

void row_item(const Op& op, const Run& run, const Step& step, int64_t item) {
  const View& view = op.kind == kExport ? op.in : op.out;
  (view.element == 1 ? row_item_of<uint8_t> : row_item_of<float>)(op, run, step, item);
}

}  // namespace
}  // namespace maxq
