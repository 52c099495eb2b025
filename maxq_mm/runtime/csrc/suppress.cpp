// Suppression of boxes that overlap others of higher scores, with the arithmetic of mmcv's: the same
// boxes stay, to the bit. Boxes of one group are compared alone, all threads over groups: groups are
// apart along x, as levels and classes are that were shifted away from each other.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "pool.h"

namespace {

struct Boxes {
  std::vector<float> left, top, right, bottom, area;
  std::vector<int32_t> gone;
  explicit Boxes(int64_t count)
      : left(count), top(count), right(count), bottom(count), area(count), gone(count) {}
};

// Marks those after `i` that overlap it by more than the threshold.
void compare(Boxes& boxes, int64_t i, int64_t count, float threshold) {
  const float left = boxes.left[i], top = boxes.top[i], right = boxes.right[i];
  const float bottom = boxes.bottom[i], area = boxes.area[i];
  const float *lefts = boxes.left.data(), *tops = boxes.top.data(), *rights = boxes.right.data();
  const float *bottoms = boxes.bottom.data(), *areas = boxes.area.data();
  int32_t* gone = boxes.gone.data();
  for (int64_t j = i + 1; j < count; ++j) {
    const float from_x = lefts[j] > left ? lefts[j] : left;
    const float from_y = tops[j] > top ? tops[j] : top;
    const float to_x = rights[j] < right ? rights[j] : right;
    const float to_y = bottoms[j] < bottom ? bottoms[j] : bottom;
    const float width = to_x - from_x > 0.f ? to_x - from_x : 0.f;
    const float height = to_y - from_y > 0.f ? to_y - from_y : 0.f;
    const float both = width * height;
    gone[j] |= both / (area + areas[j] - both) > threshold;
  }
}

void suppress(const float* all, const std::vector<int64_t>& members, float threshold,
              uint8_t* keep) {
  const auto count = static_cast<int64_t>(members.size());
  Boxes boxes(count);
  for (int64_t i = 0; i < count; ++i) {
    const float* box = all + 4 * members[i];
    boxes.left[i] = box[0], boxes.top[i] = box[1], boxes.right[i] = box[2], boxes.bottom[i] = box[3];
    boxes.area[i] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  for (int64_t i = 0; i < count; ++i) {
    keep[members[i]] = !boxes.gone[i];
    if (!boxes.gone[i]) compare(boxes, i, count, threshold);
  }
}

}  // namespace

// boxes: count times x1, y1, x2, y2, finite, the highest score first; keep: whether each stays.
extern "C" void maxq_suppress(const float* boxes, int64_t count, float threshold, uint8_t* keep,
                              int64_t threads) {
  std::vector<int64_t> order(count), group(count);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return boxes[4 * a] < boxes[4 * b]; });
  int64_t groups = 0;
  float reach = 0;
  for (int64_t i : order) {
    const float* box = boxes + 4 * i;
    if (groups == 0 || box[0] > reach) ++groups, reach = box[2];
    reach = std::max(reach, box[2]);
    group[i] = groups - 1;
  }
  std::vector<std::vector<int64_t>> members(groups);
  for (int64_t i = 0; i < count; ++i) members[group[i]].push_back(i);
  maxq::run_jobs(
      1,
      [&](int64_t) {
        return maxq::Job{
            groups, [&](int64_t item, float*) { suppress(boxes, members[item], threshold, keep); },
            0};
      },
      threads);
}
