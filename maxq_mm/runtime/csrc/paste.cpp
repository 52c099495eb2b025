// Masks of boxes, drawn into an image and cut at a threshold.
//
// A pixel's value is the bilinear sample of its box's mask at its centre, 0 outside. The samples of
// all columns are taken once for each row of the mask; a row of the image is then a mean of two.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "pool.h"

namespace {

// Mirrored in masks.py.
struct Paste {
  int64_t count, rows, columns;  // masks, and their size
  int64_t height, width;         // of the image
  const float *masks, *boxes;    // (count, rows, columns), (count, 4): x1, y1, x2, y2
  float threshold;
  // How far off a value may be, and how far off in pixels of the mask its place.
  float rounding, drift;
  uint8_t* out;  // (count, height, width), 0 where no box is
  // (capacity, 3): mask, y and x of pixels whose value may be on either side of the threshold, in
  // no certain order.
  int64_t* doubts;
  int64_t capacity;
};

// The two samples of a pixel along one axis of the mask, and their weights.
struct Sample {
  int64_t low, high;
  float low_weight, high_weight;
  bool is_border;  // one of them is beyond the mask
};

Sample sample(int64_t pixel, float from, float to, int64_t size) {
  // In the order of mmdet's and torch's operators, which round.
  const float place = (static_cast<float>(pixel) + .5f - from) / (to - from) * 2 - 1;
  const float at = (place + 1) * (size / 2.f) - .5f;
  if (!(at > -1 && at < size)) return {0, 0, 0, 0, true};
  const float floor = std::floor(at);
  const auto low = static_cast<int64_t>(floor);
  return {std::max<int64_t>(low, 0), std::min(low + 1, size - 1),
          low < 0 ? 0.f : 1 - (at - floor), low + 1 < size ? at - floor : 0.f,
          low < 0 || low + 1 >= size};
}

int64_t begin(float low) { return static_cast<int64_t>(std::max(std::floor(low) - 1, 0.f)); }

int64_t end(float high, int64_t size) {
  return static_cast<int64_t>(std::min(std::ceil(high) + 1, static_cast<float>(size)));
}

// The most that neighbours differ by.
float steepest(const Paste& op, const float* mask) {
  float most = 0;
  for (int64_t i = 0; i < op.rows * op.columns; ++i) {
    if ((i + 1) % op.columns) most = std::max(most, std::fabs(mask[i + 1] - mask[i]));
    if (i >= op.columns) most = std::max(most, std::fabs(mask[i] - mask[i - op.columns]));
  }
  return most;
}

void paste(const Paste& op, int64_t number, float* lines, std::atomic<int64_t>& doubts) {
  const float *box = op.boxes + 4 * number, *mask = op.masks + number * op.rows * op.columns;
  const int64_t left = begin(box[0]), top = begin(box[1]);
  const int64_t width = end(box[2], op.width) - left, bottom = end(box[3], op.height);
  // Beyond a mask, values drop from 1 to 0.
  const float inside = op.rounding + op.drift * steepest(op, mask), border = op.rounding + op.drift;
  float* const margins = lines + op.rows * op.width;
  for (int64_t x = 0; x < width; ++x) {
    const Sample at = sample(left + x, box[0], box[2], op.columns);
    margins[x] = at.is_border ? border : inside;
    for (int64_t row = 0; row < op.rows; ++row)
      lines[row * op.width + x] = at.low_weight * mask[row * op.columns + at.low] +
                                  at.high_weight * mask[row * op.columns + at.high];
  }
  for (int64_t y = top; y < bottom; ++y) {
    const Sample at = sample(y, box[1], box[3], op.rows);
    const float *low = lines + at.low * op.width, *high = lines + at.high * op.width;
    uint8_t* to = op.out + (number * op.height + y) * op.width + left;
    const auto value = [&](int64_t x) { return at.low_weight * low[x] + at.high_weight * high[x]; };
    const float least = at.is_border ? border : inside;
    const auto is_near = [&](int64_t x) {
      return std::fabs(value(x) - op.threshold) <= std::max(margins[x], least);
    };
    int32_t near = 0;
    for (int64_t x = 0; x < width; ++x) {
      to[x] = value(x) >= op.threshold;
      near += is_near(x);
    }
    for (int64_t x = 0; near > 0; ++x) {
      if (!is_near(x)) continue;
      --near;
      const int64_t place = doubts.fetch_add(1);
      if (place >= op.capacity) continue;
      const int64_t pixel[] = {number, y, left + x};
      std::copy(pixel, pixel + 3, op.doubts + 3 * place);
    }
  }
}

}  // namespace

extern "C" {

int64_t maxq_paste_bytes() { return sizeof(Paste); }

// Boxes have widths and heights, and lie in the image but for a pixel. Returns the number of doubts,
// of which no more than the capacity are told.
int64_t maxq_paste(const Paste* op, int64_t threads) {
  std::atomic<int64_t> doubts{0};
  maxq::run_jobs(
      1,
      [&](int64_t) {
        return maxq::Job{op->count,
                         [&](int64_t item, float* scratch) { paste(*op, item, scratch, doubts); },
                         (op->rows + 1) * op->width};
      },
      threads);
  return doubts.load();
}

}  // extern "C"
