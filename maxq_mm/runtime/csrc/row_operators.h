// What moves.h does, for activations in channels-last: into and out of the layout of runtime.h,
// pooling, sums, upsampling. An item is a piece of a row; T is float or a byte.
#pragma once

#include "exchange.h"

namespace maxq {
namespace {

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
  if (const int64_t rows = rows_at_a_time(op)) return divide_up(step.end - step.begin, rows);
  const View& view = op.kind == kExport ? op.in : op.out;
  return (step.end - step.begin) * divide_up(view.w, Piece::kLength);
}

// T: of what is inside, of the result where both are.
template <typename T>
void row_item_of(const Op& op, const Run& run, const Step& step, int64_t item) {
  if (const int64_t rows = rows_at_a_time(op)) {
    const int64_t begin = step.begin + item * rows;
    return export_rows<T>(op, run, begin, begin + rows < step.end ? begin + rows : step.end);
  }
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
