// RoIAlign for all regions: what is the same for all channels, then the channels.

#include "regions.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"

namespace {

using maxq::Map;
using maxq::Region;
using maxq::RoiAlign;
using maxq::Taps;

constexpr int64_t kChannels = 2;  // at a time: their maps stay in cache for all regions

const maxq::RegionKernels& kernels(int64_t lanes) {
#if !defined(MAXQ_EMULATE)
  if (lanes == 8) return maxq::kRegionsAvx2;
#endif
  return maxq::kRegionsAvx512;
}

// The samples of one axis of a region, in pixels of the map.
struct Axis {
  float start, bin;  // of the region, and size of a bin
  int64_t grid;      // samples of a bin
  int64_t size;      // of the map

  Axis(const RoiAlign& op, float low, float high, float scale, int64_t bins, int64_t map_size)
      : size(map_size) {
    const float offset = op.aligned ? .5f : 0.f;
    start = low * scale - offset;
    float length = high * scale - offset - start;
    if (!op.aligned) length = std::max(length, 1.f);
    bin = length / bins;
    grid = op.sampling > 0 ? op.sampling : static_cast<int64_t>(std::ceil(length / bins));
  }

  // Calls use(pixel, weight) for both pixels of each sample of a bin that is in the map.
  template <typename Use>
  void samples(int64_t number, const Use& use) const {
    for (int64_t i = 0; i < grid; ++i) {
      float at = start + number * bin + (i + .5f) * bin / grid;
      if (!(at >= -1.f && at <= static_cast<float>(size))) continue;
      at = std::max(at, 0.f);
      const int64_t low = std::min(static_cast<int64_t>(at), size - 1);
      const float share = low == size - 1 ? 0.f : at - low;
      use(low, (1 - share) / grid);
      if (share > 0) use(low + 1, share / grid);
    }
  }

  // First and last pixel of a bin; last < first if there is none.
  void span(int64_t number, int64_t& first, int64_t& last) const {
    first = size;
    last = -1;
    samples(number, [&](int64_t pixel, float) {
      first = std::min(first, pixel);
      last = std::max(last, pixel);
    });
  }
};

// Memory of a region's weights.
struct Tables {
  std::vector<Taps> taps;
  std::vector<float> weights;
};

void prepare(const RoiAlign& op, int64_t number, int64_t lanes, Region& region, Tables& tables) {
  const float* box = op.boxes + 5 * number;
  const Map& map = op.maps[op.level[number]];
  const Axis across(op, box[1], box[3], map.scale, op.columns, map.w);
  const Axis down(op, box[2], box[4], map.scale, op.rows, map.h);
  const int64_t vectors = (op.columns + lanes - 1) / lanes;
  tables.taps.resize(op.rows + vectors);
  Taps* const rows = tables.taps.data();
  Taps* const columns = rows + op.rows;

  int64_t floats = 0;
  for (int64_t r = 0; r < op.rows; ++r) {
    int64_t first, last;
    down.span(r, first, last);
    rows[r] = {first, std::max<int64_t>(last - first + 1, 0), nullptr};
    floats += rows[r].count;
  }
  int64_t left = map.w, right = -1;
  for (int64_t v = 0; v < vectors; ++v) {
    int64_t from = map.w, to = -1;
    for (int64_t c = v * lanes; c < std::min((v + 1) * lanes, op.columns); ++c) {
      int64_t first, last;
      across.span(c, first, last);
      from = std::min(from, first);
      to = std::max(to, last);
    }
    columns[v] = {from, std::max<int64_t>(to - from + 1, 0), nullptr};
    floats += columns[v].count * lanes;
    left = std::min(left, from);
    right = std::max(right, to);
  }
  if (right < left) left = 0, right = -1;
  // At least a vector wide, within the map.
  const int64_t width = std::min(std::max(right - left + 1, lanes), map.w);
  left = std::min(left, map.w - width);

  tables.weights.assign(floats, 0.f);
  float* next = tables.weights.data();
  for (int64_t r = 0; r < op.rows; ++r) {
    down.samples(r, [&](int64_t pixel, float weight) { next[pixel - rows[r].first] += weight; });
    rows[r].weights = next;
    next += rows[r].count;
  }
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t c = v * lanes; c < std::min((v + 1) * lanes, op.columns); ++c)
      across.samples(c, [&](int64_t pixel, float weight) {
        next[(pixel - columns[v].first) * lanes + c - v * lanes] += weight;
      });
    columns[v].weights = next;
    next += columns[v].count * lanes;
    columns[v].first -= left;  // from where the lines begin
  }
  region = {map.data + static_cast<int64_t>(box[0]) * map.image,
            map.channel,
            map.row,
            map.pixel,
            left,
            width,
            rows,
            columns,
            op.out + number * op.channels * op.rows * op.columns};
}

}  // namespace

extern "C" {

// Bytes of the two structures, so that their mirrors are checked.
void maxq_region_bytes(int64_t* to) {
  to[0] = sizeof(Map);
  to[1] = sizeof(RoiAlign);
}

void maxq_roi_align(int64_t lanes, const RoiAlign* op, int64_t threads) {
  const maxq::RegionKernels& chosen = kernels(lanes);
  std::vector<int64_t> order;  // by level, so that a map stays in cache
  for (int64_t level = 0; level < op->levels; ++level)
    for (int64_t i = 0; i < op->count; ++i)
      if (op->level[i] == level) order.push_back(i);
  // Channels side by side are in lanes, and columns of bins are by themselves.
  const bool is_pixels = op->levels > 0 && op->maps[0].pixel != 1 && chosen.align_pixels;
  const int64_t columns_at_once = is_pixels ? 1 : chosen.lanes;
  std::vector<Region> regions(op->count);
  std::vector<Tables> tables(op->count);
  int64_t widest = 0;
  constexpr int64_t kAtOnce = 16;
  const maxq::Job preparation{(op->count + kAtOnce - 1) / kAtOnce,
                              [&](int64_t item, float*) {
                                const int64_t end = std::min((item + 1) * kAtOnce, op->count);
                                for (int64_t i = item * kAtOnce; i < end; ++i)
                                  prepare(*op, order[i], columns_at_once, regions[i],
                                          tables[i]);
                              },
                              0};
  const auto by_regions = [&](int64_t item, float* scratch) {
    chosen.align_pixels(*op, regions[item], scratch);
  };
  const auto by_channels = [&](int64_t item, float* scratch) {
    const int64_t begin = item * kChannels;
    chosen.align(*op, regions.data(), begin, std::min(begin + kChannels, op->channels), scratch);
  };
  maxq::run_jobs(
      2,
      [&](int64_t job) {
        if (job == 0) return preparation;
        for (const Region& region : regions) widest = std::max(widest, region.width);
        if (is_pixels) return maxq::Job{op->count, by_regions, chosen.pixels_scratch(*op, widest)};
        return maxq::Job{(op->channels + kChannels - 1) / kChannels, by_channels,
                         chosen.scratch(*op, widest)};
      },
      threads);
}

}  // extern "C"
