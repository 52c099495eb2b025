// What moves.h does, for activations in channels-last: into and out of the layout of runtime.h (a
// tile is a pixel), pooling, sums, upsampling. An item is a piece of a row.
#pragma once

#include <cstring>

#include "lanes.h"
#include "runtime.h"

namespace maxq {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats of a pixel: its channels and zeros up to whole vectors.
int64_t channels_of(const View& view) { return divide_up(view.c, Lanes::kSize) * Lanes::kSize; }

float* pixel_of(const View& view, const Run& run, int64_t image, int64_t y, int64_t x) {
  return run.arena + view.offset + image * view.image + (y * view.pitch + x) * channels_of(view);
}

void clear(float* from, int64_t count) { std::memset(from, 0, count * sizeof(float)); }

// Zeros around all images.
void clear_border(const View& view, const Run& run) {
  const int64_t size = channels_of(view);
  clear(run.arena + view.offset - view.front, view.front);
  for (int64_t image = 0; image < view.n; ++image) {
    if (view.pitch > view.w)
      for (int64_t y = 0; y < view.h; ++y)
        clear(pixel_of(view, run, image, y, view.w), (view.pitch - view.w) * size);
    clear(pixel_of(view, run, image, view.h, 0), view.margin * size);
  }
}

float larger(float a, float b) { return a > b || a != a ? a : b; }  // NaN wins, as in torch

struct Piece {
  static constexpr int64_t kLength = 64;
  int64_t image, y, begin, end;  // pixels of a row
  Piece(const View& view, int64_t item) {
    const int64_t pieces = divide_up(view.w, kLength);
    image = item / pieces / view.h;
    y = item / pieces % view.h;
    begin = item % pieces * kLength;
    end = begin + kLength < view.w ? begin + kLength : view.w;
  }
};

void exchange_row(const Op& op, const Run& run, const Piece& at) {
  const bool is_import = op.kind == kImport;
  const View& view = is_import ? op.out : op.in;
  const int64_t *s = op.strides, size = channels_of(view);
  float* outside = run.externals[op.external] + at.image * s[0] + at.y * s[2];
  float* inside = pixel_of(view, run, at.image, at.y, 0);
  constexpr int64_t kAtOnce = 16;  // channels, then pixels: each line is used whole
  for (int64_t c = 0; c < view.c; c += kAtOnce)
    for (int64_t x = at.begin; x < at.end; ++x)
      for (int64_t i = c; i < view.c && i < c + kAtOnce; ++i) {
        float &inner = inside[x * size + i], &outer = outside[x * s[3] + i * s[1]];
        (is_import ? inner : outer) = is_import ? outer : inner;
      }
  if (is_import)
    for (int64_t x = at.begin; x < at.end; ++x) clear(inside + x * size + view.c, size - view.c);
}

void pool_row(const Op& op, const Run& run, const Piece& at) {
  const View &in = op.in, &out = op.out;
  const int64_t size = channels_of(out);
  for (int64_t x = at.begin; x < at.end; ++x) {
    float* to = pixel_of(out, run, at.image, at.y, x);
    bool is_first = true;
    for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
      for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
        const int64_t from_y = at.y * op.stride[0] + ky - op.padding[0];
        const int64_t from_x = x * op.stride[1] + kx - op.padding[1];
        if (from_y < 0 || from_y >= in.h || from_x < 0 || from_x >= in.w) continue;
        const float* from = pixel_of(in, run, at.image, from_y, from_x);
        if (is_first)
          std::memcpy(to, from, size * sizeof(float));
        else
          for (int64_t c = 0; c < size; ++c) to[c] = larger(from[c], to[c]);
        is_first = false;
      }
  }
}

void add_row(const Op& op, const Run& run, const Piece& at) {
  const int64_t count = (at.end - at.begin) * channels_of(op.out);
  const float* from = pixel_of(op.in, run, at.image, at.y, at.begin);
  const float* other = op.other.pitch ? pixel_of(op.other, run, at.image, at.y, at.begin) : nullptr;
  float* to = pixel_of(op.out, run, at.image, at.y, at.begin);
  for (int64_t i = 0; i < count; ++i) {
    const float sum = other ? from[i] + other[i] : from[i];
    to[i] = op.relu && sum < 0 ? 0.f : sum;
  }
}

// The nearest pixels of a smaller map, added to another if there is one.
void upsample_row(const Op& op, const Run& run, const Piece& at) {
  const View &in = op.in, &out = op.out;
  const int64_t size = channels_of(out);
  const auto near = [](int64_t i, int64_t from, int64_t to) {
    const auto index = static_cast<int64_t>(i * (static_cast<float>(from) / to));
    return index < from ? index : from - 1;
  };
  for (int64_t x = at.begin; x < at.end; ++x) {
    const float* from = pixel_of(in, run, at.image, near(at.y, in.h, out.h), near(x, in.w, out.w));
    const float* other = op.other.pitch ? pixel_of(op.other, run, at.image, at.y, x) : nullptr;
    float* to = pixel_of(out, run, at.image, at.y, x);
    for (int64_t c = 0; c < size; ++c) to[c] = other ? from[c] + other[c] : from[c];
  }
}

int64_t row_items(const Op& op) {
  const View& view = op.kind == kExport ? op.in : op.out;
  return view.n * view.h * divide_up(view.w, Piece::kLength);
}

void row_item(const Op& op, const Run& run, int64_t item) {
  const Piece piece(op.kind == kExport ? op.in : op.out, item);
  switch (op.kind) {
    case kMaxPool: pool_row(op, run, piece); break;
    case kAdd: add_row(op, run, piece); break;
    case kUpsample: upsample_row(op, run, piece); break;
    default: exchange_row(op, run, piece);
  }
  if (item == 0 && op.kind != kExport) clear_border(op.out, run);
}

}  // namespace
}  // namespace maxq
