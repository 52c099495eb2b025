// Pixels in channels-last into and out of tensors outside, whose channels are planes, or lie side by
// side, too.
#pragma once

#include "rows.h"

namespace maxq {
namespace {

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
    for (int64_t c = 0; c < channels; ++c)
      convert(scales[c], outside[c * plane + x], to[4 * x + c]);
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

}  // namespace
}  // namespace maxq
