// The channels of RoIAlign's regions, for one instruction set: see regions.h.
#pragma once

#include <cstring>

#include "lanes.h"
#include "regions.h"

namespace maxq {
namespace {

constexpr int64_t kRows = 7;  // of bins at a time: they share the weights of the columns
constexpr int64_t kSize = Lanes::kSize;

int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows of the map into a row of bins.
void add_rows(const Region& region, const float* map, const Taps& taps, float* to) {
  const float* from = map + taps.first * region.row + region.left;
  if (region.width < kSize) {  // the map is narrower than a vector
    for (int64_t x = 0; x < region.width; ++x) {
      float sum = 0;
      for (int64_t i = 0; i < taps.count; ++i) sum += taps.weights[i] * from[i * region.row + x];
      to[x] = sum;
    }
    return;
  }
  for (int64_t next = 0; next < region.width; next += kSize) {
    // The last vector overlaps the one before: nothing outside is read.
    const int64_t x = next + kSize <= region.width ? next : region.width - kSize;
    Lanes sum = Lanes::fill(0);
    for (int64_t i = 0; i < taps.count; ++i)
      sum = sum.fma(Lanes::fill(taps.weights[i]), Lanes::load(from + i * region.row + x));
    sum.store(to + x);
  }
}

// A vector of bins of kRows rows, from the map's columns in those rows.
void add_columns(const Taps& taps, const float* from, int64_t stride, Lanes* sums) {
  Lanes sum[kRows];
  for (int64_t r = 0; r < kRows; ++r) sum[r] = Lanes::fill(0);
  for (int64_t i = 0; i < taps.count; ++i) {
    const Lanes weights = Lanes::load(taps.weights + i * kSize);
    for (int64_t r = 0; r < kRows; ++r)
      sum[r] = sum[r].fma(weights, Lanes::fill(from[r * stride + taps.first + i]));
  }
  for (int64_t r = 0; r < kRows; ++r) sums[r] = sum[r];
}

// Nothing is written from `limit` on.
void align_channel(const RoiAlign& op, const Region& region, int64_t channel, const float* limit,
                   float* lines) {
  const float* map = region.data + channel * region.channel;
  const int64_t stride = rounded_up(region.width, kSize), size = op.rows * op.columns;
  for (int64_t r = 0; r < op.rows; ++r) add_rows(region, map, region.rows[r], lines + r * stride);
  float* out = region.out + channel * size;
  for (int64_t r = 0; r < op.rows; r += kRows)
    // What a row's last vector writes beyond it is written again by what follows.
    for (int64_t v = (op.columns - 1) / kSize; v >= 0; --v) {
      Lanes sums[kRows];
      add_columns(region.vectors[v], lines + r * stride, stride, sums);
      for (int64_t i = 0; i < kRows && r + i < op.rows; ++i) {
        float* to = out + (r + i) * op.columns + v * kSize;
        if (to + kSize <= limit) {
          sums[i].store(to);
        } else {
          float line[kSize];
          sums[i].store(line);
          std::memcpy(to, line, (limit - to) * sizeof(float));
        }
      }
    }
}

void align(const RoiAlign& op, const Region* regions, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = 0; i < op.count; ++i)
    for (int64_t channel = begin; channel < end; ++channel)
      align_channel(op, regions[i], channel, regions[i].out + end * op.rows * op.columns, scratch);
}

int64_t align_scratch(const RoiAlign& op, int64_t widest) {
  return rounded_up(op.rows, kRows) * rounded_up(widest, kSize);
}

#if LANES == 16

constexpr int64_t kVectors = 4, kTogether = kVectors * kSize;  // channels at a time

// So many vectors of channels, from taps that are `step` floats apart; the others become 0.
void add_taps(const Taps& taps, const float* from, int64_t step, int64_t vectors, float* to) {
  Lanes sum[kVectors] = {Lanes::fill(0), Lanes::fill(0), Lanes::fill(0), Lanes::fill(0)};
  for (int64_t i = 0; i < taps.count; ++i, from += step) {
    const Lanes weight = Lanes::fill(taps.weights[i]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      if (v < vectors) sum[v] = sum[v].fma(weight, Lanes::load(from + v * kSize));
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v].store(to + v * kSize);
}

void align_pixels(const RoiAlign& op, const Region& region, float* scratch) {
  const int64_t bins = op.rows * op.columns;
  float *found = scratch, *line = found + bins * kTogether;
  for (int64_t begin = 0; begin < op.channels; begin += kTogether) {
    const int64_t left = (op.channels - begin) / kSize, vectors = left < kVectors ? left : kVectors;
    for (int64_t r = 0; r < op.rows; ++r) {
      const Taps& rows = region.rows[r];
      const float* from = region.data + begin + rows.first * region.row + region.left * region.pixel;
      for (int64_t x = 0; x < region.width; ++x)  // into a line
        add_taps(rows, from + x * region.pixel, region.row, vectors, line + x * kTogether);
      for (int64_t c = 0; c < op.columns; ++c)  // and that into bins
        add_taps(region.vectors[c], line + region.vectors[c].first * kTogether, kTogether, vectors,
                 found + (r * op.columns + c) * kTogether);
    }
    float* out = region.out + begin * bins;
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t bin = 0; bin < bins; bin += kSize) {
        const int64_t some = bins - bin < kSize ? bins - bin : kSize;
        Lanes lines[kSize];
        for (int64_t i = 0; i < kSize; ++i)
          lines[i] = i < some ? Lanes::load(found + (bin + i) * kTogether + v * kSize)
                              : Lanes::fill(0);
        transpose(lines);
        for (int64_t i = 0; i < kSize; ++i)
          lines[i].store(out + (v * kSize + i) * bins + bin, some);
      }
  }
}

int64_t pixels_scratch(const RoiAlign& op, int64_t widest) {
  return (op.rows * op.columns + widest) * kTogether;
}
#else
constexpr decltype(RegionKernels::pixels_scratch) pixels_scratch = nullptr;
constexpr decltype(RegionKernels::align_pixels) align_pixels = nullptr;
#endif

}  // namespace

const RegionKernels KERNELS{kSize, align_scratch, align, pixels_scratch, align_pixels};

}  // namespace maxq
