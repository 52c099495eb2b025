// Activations in channels-last, a tile of runtime.h being a pixel: where pixels lie, what stands around
// images, and the pieces of rows that operators work on. T is float or a byte.
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

}  // namespace
}  // namespace maxq
