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

// Bytes of a result from which it is written past the caches, which could not hold it until it is
// read; without, each of its lines would first be fetched.
constexpr int64_t kStreamed = 4 << 20;

bool is_streamed(const Op& op) {
  const View& view = op.in;
  return op.kind == kExport &&
         view.n * view.c * view.h * view.w * static_cast<int64_t>(sizeof(float)) >= kStreamed;
}

// Rows of a result that are written at a time. If lines begin at the same pixels of all planes, and
// rows follow each other, enough that few lines are cut.
int64_t rows_at_a_time(const Op& op) {
  constexpr int64_t kPixels = 128;
  const View& view = op.in;
  const bool together = is_streamed(op) && op.strides[1] % Lanes::kSize == 0 &&
                        op.strides[3] == 1 && op.strides[2] == view.w;
  return !together ? 0 : view.w < kPixels ? kPixels / view.w : 1;
}

// Pixels of planes outside, 16 of 16 channels at a time.
template <typename T>
void import_planes(const Op& op, const View& view, const float* outside, T* inside,
                   int64_t count) {
  constexpr int64_t kSize = Lanes::kSize;
  Lanes lines[kSize];
  for (int64_t c = 0; c < view.c; c += kSize) {
    const int64_t channels = view.c - c < kSize ? view.c - c : kSize;
    const LaneScales scales(ChannelScales(op), c, channels);
    for (int64_t x = 0; x < count; x += kSize) {
      const int64_t pixels = count - x < kSize ? count - x : kSize;
      for (int64_t i = 0; i < kSize; ++i)
        lines[i] = i < channels ? Lanes::load(outside + (c + i) * op.strides[1] + x, pixels)
                                : Lanes::fill(0);
      transpose(lines);
      for (int64_t i = 0; i < pixels; ++i)
        store_pixel(lines[i], inside + (x + i) * view.size + c, channels, scales);
    }
  }
}

// And into them: `count` pixels from column x on, through as many rows as it takes. Blocks of 16 begin
// where lines do, and are streamed then if they may be.
template <typename T>
void export_planes(const Op& op, const View& view, float* outside, const T* inside, int64_t x,
                   int64_t count, bool streamed) {
  constexpr int64_t kSize = Lanes::kSize;
  const int64_t plane = op.strides[1], size = view.size;
  const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(outside) / sizeof(float));
  Lanes lines[kSize];
  for (int64_t c = 0; c < view.c; c += kSize) {
    const int64_t channels = view.c - c < kSize ? view.c - c : kSize;
    const LaneScales scales(ChannelScales(op), c, channels);
    const T* here = inside + c;
    int64_t column = x, pixels = kSize - place % kSize;
    for (int64_t i = 0; i < count; i += pixels, pixels = kSize) {
      if (pixels > count - i) pixels = count - i;
      float* planes = outside + c * plane + i;
      // Planes lie too far apart for the processor to see what is written next.
      const float* next = planes + (i + pixels < count ? pixels : kSize * plane - i);
      if (!streamed)
        for (int64_t j = 0; j < kSize && c + j < view.c; ++j)
          __builtin_prefetch(next + j * plane, 1);
      for (int64_t j = 0; j < kSize; ++j) {
        lines[j] = j < pixels ? load_pixel(here, channels, view, scales) : Lanes::fill(0);
        if (j >= pixels) continue;
        here += size;
        if (++column == view.w) {
          column = 0;
          here += (view.pitch - view.w) * size;
        }
      }
      transpose(lines);
      for (int64_t j = 0; j < channels; ++j)
        streamed && pixels == kSize ? lines[j].stream(planes + j * plane)
                                    : lines[j].store(planes + j * plane, pixels);
    }
  }
  if (streamed) Lanes::fence();
}

// Rows that are written at a time.
template <typename T>
void export_rows(const Op& op, const Run& run, int64_t row, int64_t end) {
  const View& view = op.in;
  while (row < end) {
    const int64_t image = row / view.h, y = row % view.h;
    const int64_t rows = end - row < view.h - y ? end - row : view.h - y;
    export_planes(op, view,
                  run.externals[op.external] + image * op.strides[0] + y * op.strides[2],
                  pixel_of<T>(view, run, image, y, 0), 0, rows * view.w, true);
    row += rows;
  }
}

// The same where a pixel's channels lie side by side outside, too.
template <typename T>
void exchange_pixels(const Op& op, const View& view, float* outside, T* inside, int64_t count) {
  constexpr int64_t kSize = Lanes::kSize;
  const ChannelScales all(op);
  const bool streamed = is_streamed(op) && view.c % kSize == 0 && op.strides[3] % kSize == 0 &&
                        reinterpret_cast<uintptr_t>(outside) % (kSize * sizeof(float)) == 0;
  for (int64_t x = 0; x < count; ++x, outside += op.strides[3], inside += view.size)
    for (int64_t c = 0; c < view.c; c += kSize) {
      const int64_t channels = view.c - c < kSize ? view.c - c : kSize;
      const LaneScales scales(all, c, channels);
      if (op.kind == kImport) {
        store_pixel(Lanes::load(outside + c, channels), inside + c, channels, scales);
      } else {
        const Lanes found = load_pixel(inside + c, channels, view, scales);
        streamed ? found.stream(outside + c) : found.store(outside + c, channels);
      }
    }
  if (streamed) Lanes::fence();
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
    if (is_import)
      import_planes(op, view, outside, inside, count);
    else
      export_planes(op, view, outside, inside, at.begin, count, false);
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
