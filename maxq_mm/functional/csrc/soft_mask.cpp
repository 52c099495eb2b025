// MaxQ's soft mask (arXiv 2312.07061, section 3.3) of one float32 weight on CPUs, in few passes.
//
// Shapes: weight (O, I, P) with P kernel positions; rank lists are the O filters of I * P weights
// and the P positions of O * I. What is selected are magnitudes as the integers of their bits,
// which for numbers >= 0 have the same order and halve in 31 steps, whatever the values are.
//
// The Python functions in masks.py define every result; this file only gets there faster.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace {

using Vec = at::vec::Vectorized<float>;

constexpr int kMaxM = 64;          // larger blocks are left to the Python functions
constexpr int64_t kFew = 64;       // so many candidates are sorted out directly
constexpr int64_t kSample = 4096;  // rows looked at before a long column is read in full
constexpr int64_t kMargin = 128;   // four standard deviations of a rank in such a sample, or more
constexpr int64_t kTile = 256;     // blocks that are ranked together
constexpr int32_t kMagnitude = 0x7fffffff;
constexpr int32_t kNear = 1 << 20;  // thresholds of two filters often differ by less than 1/8

int32_t bits(float value) { return c10::bit_cast<int32_t>(value) & kMagnitude; }

float number(int32_t bits) { return c10::bit_cast<float>(bits); }

// Where a rank list is split: its q smallest lie on one side.
struct Threshold {
  float kth;           // the largest of the q smallest
  float middle;        // half way to the next
  int64_t last_tied;   // of those equal to kth, the ones up to this position are among the q
};
constexpr int64_t kAllTied = std::numeric_limits<int64_t>::max();

int64_t count_below(const int32_t* values, int64_t size, int32_t limit) {
  int64_t total = 0;
  for (int64_t start = 0; start < size; start += 1 << 20) {
    const int64_t end = std::min(size, start + (1 << 20));
    int32_t count = 0;
    for (int64_t i = start; i < end; ++i) count += values[i] < limit;
    total += count;
  }
  return total;
}

// Call use(i) for every i < size with flags[i] = 1; others are 0, up to a multiple of eight.
template <typename Use>
void for_each_flag(const uint8_t* flags, int64_t size, const Use& use) {
  for (int64_t start = 0; start < size; start += 8) {
    uint64_t word;
    std::memcpy(&word, flags + start, sizeof word);
    for (; word; word &= word - 1) use(start + (__builtin_ctzll(word) >> 3));
  }
}

void flag_within(const int32_t* values, int64_t size, int32_t low, int32_t high,
                 uint8_t* __restrict flags) {
  for (int64_t i = 0; i < size; ++i) flags[i] = (values[i] >= low) & (values[i] <= high);
}

struct Scratch {
  std::vector<int32_t> candidates;
  std::vector<uint8_t> flags;
};

// The q-th and the (q+1)-th smallest of values, 0 < q < size: halves the range of numbers that they
// can be in until few values are left in it. The range begins as the one given if that holds them.
std::pair<int32_t, int32_t> select(const int32_t* values, int64_t size, int64_t q, Scratch& scratch,
                                   int32_t low = 0, int32_t high = kMagnitude) {
  // below_low < q values are less than low, and below_high > q are at most high.
  int64_t below_low = low == 0 ? 0 : count_below(values, size, low);
  int64_t below_high = size;
  if (below_low >= q) {
    high = low - 1;
    below_high = below_low;
    low = 0;
    below_low = 0;
  } else if (high < kMagnitude) {
    const int64_t below = count_below(values, size, high + 1);
    if (below > q) {
      below_high = below;
    } else {
      low = high + 1;
      below_low = below;
      high = kMagnitude;
    }
  }
  bool split = below_low == q || below_high == q;  // exactly at an end of the range
  int32_t at = below_low == q ? low - 1 : high;
  while (!split && below_high - below_low > kFew && low < high) {
    const int32_t middle = low + (high - low) / 2;
    const int64_t below = count_below(values, size, middle + 1);
    split = below == q;
    at = middle;
    if (below > q) {
      high = middle;
      below_high = below;
    } else {
      low = middle + 1;
      below_low = below;
    }
  }
  if (split) {
    int32_t kth = 0, following = kMagnitude;
    for (int64_t i = 0; i < size; ++i) {
      kth = std::max(kth, values[i] <= at ? values[i] : 0);
      following = std::min(following, values[i] > at ? values[i] : kMagnitude);
    }
    return {kth, following};
  }
  if (low == high) return {low, low};
  scratch.flags.assign((size + 7) / 8 * 8, 0);
  flag_within(values, size, low, high, scratch.flags.data());
  scratch.candidates.clear();
  for_each_flag(scratch.flags.data(), size, [&](int64_t i) { scratch.candidates.push_back(values[i]); });
  const auto kth = scratch.candidates.begin() + (q - below_low - 1);
  std::nth_element(scratch.candidates.begin(), kth, scratch.candidates.end());
  return {*kth, *std::min_element(kth + 1, scratch.candidates.end())};
}

Threshold threshold(std::pair<int32_t, int32_t> around) {
  const float kth = number(around.first), following = number(around.second);
  const float middle = (kth + following) / 2;
  // Two that are so large that their sum is infinite: nothing is above their middle.
  if (std::isinf(middle)) return {middle, std::numeric_limits<float>::max(), kAllTied};
  return {kth, middle, kAllTied};
}

// Position, along values[0], values[stride], ..., of the wanted-th (from 1) that equals tied.
int64_t find_tied(const float* values, int64_t size, int64_t stride, int32_t tied, int64_t wanted) {
  for (int64_t i = 0; i < size; ++i)
    if (bits(values[i * stride]) == tied && --wanted == 0) return i;
  return kAllTied;
}

// Thresholds of the O rows of an (O, length) weight: its filters.
std::vector<Threshold> row_thresholds(const float* weight, int64_t rows, int64_t length,
                                      int64_t q) {
  std::vector<Threshold> result(rows);
  at::parallel_for(0, rows, std::max<int64_t>(1, (1 << 15) / length), [&](int64_t o, int64_t end) {
    std::vector<int32_t> magnitude(length);
    Scratch scratch;
    int32_t low = 0, high = kMagnitude;  // near the threshold of the row before
    for (; o < end; ++o) {
      const float* row = weight + o * length;
      for (int64_t i = 0; i < length; ++i) magnitude[i] = bits(row[i]);
      const auto around = select(magnitude.data(), length, q, scratch, low, high);
      result[o] = threshold(around);
      low = std::max(0, around.first - kNear);
      high = std::min(around.first, kMagnitude - kNear) + kNear;
      if (around.first == around.second) {
        const int64_t less = count_below(magnitude.data(), length, around.first);
        result[o].last_tied = find_tied(row, length, 1, around.first, q - less);
      }
    }
  });
  return result;
}

// What one thread finds of the columns in its share of the rows.
struct Candidates {
  std::vector<int64_t> below;                  // per column: how many lie below its range
  std::vector<std::vector<int32_t>> within;    // and those within it
};

void collect(const float* rows, int64_t count, int64_t columns, const int32_t* low,
             const int32_t* high, Candidates& found) {
  // So many rows at a time that loops run over whole vectors, and flags over whole words.
  const int64_t chunk = 16 * std::max<int64_t>(1, 32 / columns), width = chunk * columns;
  std::vector<int32_t> lows(width), highs(width), of(width), value(width), below(width, 0);
  std::vector<uint8_t> inside(width, 0);
  for (int64_t i = 0; i < width; ++i) {
    of[i] = i % columns;
    lows[i] = low[of[i]];
    highs[i] = high[of[i]];
  }
  for (int64_t row = 0; row < count; row += chunk) {
    const int64_t used = std::min(chunk, count - row) * columns;
    const float* from = rows + row * columns;
    for (int64_t i = 0; i < used; ++i) {
      value[i] = bits(from[i]);
      below[i] += value[i] < lows[i];
    }
    for (int64_t i = 0; i < used; ++i)
      inside[i] = (value[i] >= lows[i]) & (value[i] <= highs[i]);
    if (used < width) std::fill(inside.begin() + used, inside.end(), 0);
    for_each_flag(inside.data(), width,
                  [&](int64_t i) { found.within[of[i]].push_back(value[i]); });
  }
  for (int64_t i = 0; i < width; ++i) found.below[of[i]] += below[i];
}

std::vector<int32_t> column(const float* values, int64_t rows, int64_t columns, int64_t k,
                            int64_t step) {
  std::vector<int32_t> result;
  result.reserve(rows / step + 1);
  for (int64_t r = 0; r < rows; r += step) result.push_back(bits(values[r * columns + k]));
  return result;
}

// Thresholds of the columns of a (rows, columns) weight: its kernel positions. A sample gives a
// range for each, one pass over all rows the few values in it; if the answer is not among them,
// the column is read on its own.
std::vector<Threshold> column_thresholds(const float* values, int64_t rows, int64_t columns,
                                         int64_t q, bool find_ties = true) {
  const int64_t step = rows <= 2 * kSample ? 1 : rows / kSample | 1;  // odd: meets all channels
  const int64_t threads = step == 1 ? 0 : at::get_num_threads();
  std::vector<int32_t> low(columns, 0), high(columns, kMagnitude);
  if (step > 1) {
    at::parallel_for(0, columns, 1, [&](int64_t k, int64_t end) {
      Scratch scratch;
      for (; k < end; ++k) {
        const auto sample = column(values, rows, columns, k, step);
        const int64_t size = sample.size(), rank = q * size / rows;
        if (rank > kMargin) low[k] = select(sample.data(), size, rank - kMargin, scratch).first;
        if (rank + kMargin < size)
          high[k] = select(sample.data(), size, rank + kMargin, scratch).first;
      }
    });
  }
  std::vector<Candidates> found(
      threads, {std::vector<int64_t>(columns, 0), std::vector<std::vector<int32_t>>(columns)});
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t end) {
    for (; thread < end; ++thread) {
      const int64_t begin = rows * thread / threads;
      collect(values + begin * columns, rows * (thread + 1) / threads - begin, columns, low.data(),
              high.data(), found[thread]);
    }
  });
  std::vector<Threshold> result(columns);
  at::parallel_for(0, columns, 1, [&](int64_t k, int64_t end) {
    std::vector<int32_t> within;
    Scratch scratch;
    for (; k < end; ++k) {
      int64_t below = 0;
      within.clear();
      for (const auto& part : found) {
        below += part.below[k];
        within.insert(within.end(), part.within[k].begin(), part.within[k].end());
      }
      if (q <= below || q >= below + static_cast<int64_t>(within.size())) {
        below = 0;
        within = column(values, rows, columns, k, 1);
      }
      const auto around = select(within.data(), within.size(), q - below, scratch);
      result[k] = threshold(around);
      if (find_ties && around.first == around.second) {
        const int64_t less = below + count_below(within.data(), within.size(), around.first);
        result[k].last_tied = find_tied(values + k, rows, columns, around.first, q - less);
      }
    }
  });
  return result;
}

struct Shape {
  int64_t filters, channels, positions, n, m;
  int64_t groups() const { return channels / m; }
  int64_t blocks() const { return filters * groups() * positions; }
  // Blocks are numbered as they lie in memory: filter, channel group, position. In the order of
  // to_blocks, which settles ties, the position comes before the group.
  int64_t rank(int64_t block) const {
    const int64_t position = block % positions, row = block / positions;
    return (row / groups() * positions + position) * groups() + row % groups();
  }
};

// Read so many groups of blocks, (groups, m, P) in memory, as the m rows of a tile, (m, groups, P).
template <int64_t kP, int64_t kM>
void load(const float* from, int64_t groups, int64_t m, int64_t positions, int64_t width,
          float* to) {
  const int64_t p = kP ? kP : positions, size = kM ? kM : m;
  if (kP == 1) {
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t j = 0; j < size; ++j) to[j * width + g] = from[g * size + j];
    return;
  }
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t j = 0; j < size; ++j)
      std::memcpy(to + j * width + g * p, from + (g * size + j) * p, p * sizeof *to);
}

// The inverse of load.
template <int64_t kP, int64_t kM>
void store(const float* from, int64_t groups, int64_t m, int64_t positions, int64_t width,
           float* to) {
  const int64_t p = kP ? kP : positions, size = kM ? kM : m;
  if (kP == 1) {
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t j = 0; j < size; ++j) to[g * size + j] = from[j * width + g];
    return;
  }
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t j = 0; j < size; ++j)
      std::memcpy(to + (g * size + j) * p, from + j * width + g * p, p * sizeof *to);
}

// load and store for a shape; sizes known to the compiler are several times as fast.
struct Movers {
  using Move = void (*)(const float*, int64_t, int64_t, int64_t, int64_t, float*);
  Move load, store;
};

Movers movers(const Shape& shape) {
  if (shape.positions == 9) return {load<9, 0>, store<9, 0>};
  if (shape.positions > 1) return {load<0, 0>, store<0, 0>};
  switch (shape.m) {
    case 2: return {load<1, 2>, store<1, 2>};
    case 4: return {load<1, 4>, store<1, 4>};
    case 8: return {load<1, 8>, store<1, 8>};
    case 16: return {load<1, 16>, store<1, 16>};
    default: return {load<1, 0>, store<1, 0>};
  }
}

// How the groups of a filter are cut into tiles.
struct Tiling {
  explicit Tiling(const Shape& shape)
      : groups(std::min(shape.groups(), std::max<int64_t>(1, kTile / shape.positions))),
        width((groups * shape.positions + Vec::size() - 1) / Vec::size() * Vec::size()) {}
  int64_t groups, width;
};

// L1 norm of every block; sums of our own, see dense_blocks.
std::vector<float> block_norms(const float* weight, const Shape& shape) {
  std::vector<float> norm(shape.blocks());
  const Tiling tiling(shape);
  const Movers move = movers(shape);
  const int64_t size = shape.m * shape.positions;  // of a group
  at::parallel_for(0, shape.filters, 1, [&](int64_t o, int64_t end) {
    std::vector<float> tile(shape.m * tiling.width);
    for (; o < end; ++o) {
      for (int64_t g = 0; g < shape.groups(); g += tiling.groups) {
        const int64_t first = o * shape.groups() + g;
        const int64_t used = std::min(tiling.groups, shape.groups() - g);
        move.load(weight + first * size, used, shape.m, shape.positions, tiling.width,
                  tile.data());
        float* sum = norm.data() + first * shape.positions;
        for (int64_t j = 0; j < shape.m; ++j) {
          const float* row = tile.data() + j * tiling.width;
          for (int64_t c = 0; c < used * shape.positions; ++c)
            sum[c] = (j ? sum[c] : 0) + std::abs(row[c]);
        }
      }
    }
  });
  return norm;
}

// Which blocks stay dense: count of them, of the smallest (or largest) L1 norm, the first of equal
// norms. A norm is the sum that torch computes over a contiguous row, whose order of additions
// depends on the machine: so sums of our own settle all blocks but those near the threshold, and
// torch's settle these.
std::vector<uint8_t> dense_blocks(const float* weight, const Shape& shape, int64_t count,
                                  bool largest) {
  const int64_t total = shape.blocks();
  std::vector<uint8_t> dense((total + 7) / 8 * 8, count == total);
  if (count == 0 || count == total) return dense;
  const std::vector<float> norm = block_norms(weight, shape);
  const Threshold split = column_thresholds(norm.data(), total, 1, largest ? total - count : count,
                                            /*find_ties=*/false)[0];
  const float following = 2 * split.middle - split.kth;
  const float slack = 8 * static_cast<float>(shape.m) * std::numeric_limits<float>::epsilon();
  const float low = split.kth * (1 - slack), high = std::max(split.kth, following) * (1 + slack);
  std::vector<uint8_t> open(dense.size(), 0);
  int64_t sure = 0;
  for (int64_t b = 0; b < total; ++b) {
    const uint8_t below = norm[b] < low, above = norm[b] > high;
    dense[b] = largest ? above : below;
    open[b] = !(below | above);
    sure += dense[b];
  }
  std::vector<int64_t> blocks;
  for_each_flag(open.data(), total, [&](int64_t b) { blocks.push_back(b); });
  std::sort(blocks.begin(), blocks.end(),
            [&](int64_t a, int64_t b) { return shape.rank(a) < shape.rank(b); });
  // At least two rows: a single one would be summed in another order.
  at::Tensor members = at::zeros({std::max<int64_t>(2, blocks.size()), shape.m});
  float* to = members.data_ptr<float>();
  for (const int64_t b : blocks) {
    const float* from = weight + b / shape.positions * shape.m * shape.positions +
                        b % shape.positions;
    for (int64_t j = 0; j < shape.m; ++j) *to++ = std::abs(from[j * shape.positions]);
  }
  const at::Tensor sums = members.sum(1);
  const float* exact = sums.data_ptr<float>();
  std::vector<int64_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return largest ? exact[a] > exact[b] : exact[a] < exact[b];
  });
  for (int64_t i = 0; i < count - sure; ++i) dense[blocks[order[i]]] = 1;
  return dense;
}

// Blocks side by side: a column is a block, a row a place in it. Whole vectors wide; what is past
// the last block is computed along and never stored.
struct Tile {
  Tile(int64_t m, int64_t columns)
      : width(columns), magnitude(m * columns), weight(m * columns), rank(m * columns),
        stays(columns) {}

  // Rank of each magnitude in its block; the earlier of two equals ranks lower.
  void rank_blocks(int64_t m) {
    for (size_t i = 0; i < weight.size(); i += Vec::size()) {
      Vec::loadu(&weight[i]).abs().store(&magnitude[i]);
      Vec(0).store(&rank[i]);
    }
    for (int64_t j = 1; j < m; ++j)
      for (int64_t i = 0; i < j; ++i)
        compare(&magnitude[i * width], &magnitude[j * width], &rank[i * width], &rank[j * width]);
  }

  void compare(const float* earlier, const float* later, float* earlier_rank, float* later_rank) {
    const Vec one(1);
    for (int64_t c = 0; c < width; c += Vec::size()) {
      const Vec before = one & (Vec::loadu(earlier + c) <= Vec::loadu(later + c));
      (Vec::loadu(later_rank + c) + before).store(later_rank + c);
      (Vec::loadu(earlier_rank + c) + (one - before)).store(earlier_rank + c);
    }
  }

  int64_t width;
  std::vector<float> magnitude, weight, rank;
  std::vector<float> stays;  // per column: all bits set where the block stays dense, else none
};

struct Queries {
  const Threshold* filters;    // per filter, or null
  const Threshold* positions;  // per kernel position, or null
  float per_temperature;
};

// What weigh needs of a tile's place: its filter and first channel, and per column the threshold of
// its kernel position.
struct Place {
  int64_t filter, channel;
  const float *kth, *middle;
};

// One over a query, a sigmoid, for magnitudes that are not below its middle.
Vec odds(Vec magnitude, Vec middle, Vec per_temperature) {
  const Vec distance = at::vec::maximum(magnitude, middle) - middle;
  return Vec(1) + (distance * per_temperature).neg().exp();
}

// Soft mask, or effective weight, of a tile, in place of its magnitudes.
template <bool kFilter, bool kPosition>
void weigh(Tile& tile, const Shape& shape, const Place& place, const Queries& queries,
           bool effective) {
  const Vec zero(0), one(1), kept_from(shape.m - shape.n), temperature(queries.per_temperature);
  const Vec filter_kth(kFilter ? queries.filters[place.filter].kth : 0);
  const Vec filter_middle(kFilter ? queries.filters[place.filter].middle : 0);
  for (int64_t j = 0; j < shape.m; ++j) {
    for (int64_t c = 0; c < tile.width; c += Vec::size()) {
      const int64_t i = j * tile.width + c;
      const Vec magnitude = Vec::loadu(&tile.magnitude[i]);
      // Both queries over one division.
      Vec top = zero, bottom = one;
      if (kFilter) {
        bottom = odds(magnitude, filter_middle, temperature);
        top = one & (magnitude > filter_kth);
      }
      if (kPosition) {
        const Vec other = odds(magnitude, Vec::loadu(place.middle + c), temperature);
        top = top * other + (bottom & (magnitude > Vec::loadu(place.kth + c)));
        bottom = bottom * other;
      }
      Vec value = one + top / bottom;
      if (effective) value = value * Vec::loadu(&tile.weight[i]);
      // NaN ranks nowhere; it is kept, so that it is seen.
      const Vec kept = (Vec::loadu(&tile.rank[i]) >= kept_from) | Vec::loadu(&tile.stays[c]) |
                       (magnitude != magnitude);
      (value & kept).store(&tile.magnitude[i]);
    }
  }
}

// The same where some threshold has values equal to it on both sides: their place decides.
void weigh_ties(Tile& tile, const Shape& shape, const Place& place, const Queries& queries,
                bool effective) {
  for (int64_t j = 0; j < shape.m; ++j) {
    for (int64_t c = 0; c < tile.width; ++c) {
      float& magnitude = tile.magnitude[j * tile.width + c];
      const int64_t position = c % shape.positions;
      const int64_t channel = place.channel + c / shape.positions * shape.m + j;
      const auto query = [&](const Threshold& split, int64_t index) {
        const bool counts =
            magnitude > split.kth || (magnitude == split.kth && index > split.last_tied);
        const float distance = std::max(magnitude, split.middle) - split.middle;
        return counts ? 1 / (1 + std::exp(-distance * queries.per_temperature)) : 0.f;
      };
      float mask = 1;
      if (queries.filters)
        mask += query(queries.filters[place.filter], channel * shape.positions + position);
      if (queries.positions)
        mask += query(queries.positions[position], place.filter * shape.channels + channel);
      const float value = effective ? mask * tile.weight[j * tile.width + c] : mask;
      const bool kept = tile.rank[j * tile.width + c] >= shape.m - shape.n ||
                        bits(tile.stays[c]) || std::isnan(magnitude);
      magnitude = kept ? value : 0.f;
    }
  }
}

at::Tensor soft_mask(const at::Tensor& weight, int64_t n, int64_t m, int64_t dense_count,
                     bool largest, bool by_filter, bool by_position, double temperature,
                     bool effective) {
  TORCH_CHECK(weight.is_contiguous() && weight.scalar_type() == at::kFloat && 0 < n &&
              n < m && m <= kMaxM && weight.dim() >= 2 && weight.size(1) % m == 0 &&
              0 <= dense_count && dense_count <= weight.numel() / m, "maxq_mm: unfit weight");
  at::Tensor result = at::empty_like(weight);
  if (weight.numel() == 0) return result;
  Shape shape{weight.size(0), weight.size(1), 1, n, m};
  shape.positions = weight.numel() / (shape.filters * shape.channels);
  const float* from = weight.data_ptr<float>();
  float* to = result.data_ptr<float>();
  const int64_t filter_size = shape.channels * shape.positions;
  by_position &= shape.positions > 1;

  std::vector<Threshold> filters, positions;
  const auto smallest = [&](int64_t size) { return size / m * (m - n); };
  if (by_filter) filters = row_thresholds(from, shape.filters, filter_size, smallest(filter_size));
  if (by_position)
    positions = column_thresholds(from, shape.filters * shape.channels, shape.positions,
                                  smallest(shape.filters * shape.channels));
  const auto dense = dense_count == 0 ? std::vector<uint8_t>()
                                      : dense_blocks(from, shape, dense_count, largest);
  // Where a threshold has values equal to it on both sides.
  const auto is_tied = [](const Threshold& split) { return split.last_tied != kAllTied; };
  const bool tied_position = std::any_of(positions.begin(), positions.end(), is_tied);
  const Queries queries{by_filter ? filters.data() : nullptr,
                        by_position ? positions.data() : nullptr,
                        static_cast<float>(std::min<double>(
                            1 / temperature, std::numeric_limits<float>::max()))};
  const auto untied = by_filter && by_position ? weigh<true, true>
                      : by_filter              ? weigh<true, false>
                      : by_position            ? weigh<false, true>
                                               : weigh<false, false>;
  const Tiling tiling(shape);
  const Movers move = movers(shape);
  std::vector<float> kth(tiling.width, 0), middle(tiling.width, 0);
  for (int64_t c = 0; by_position && c < tiling.width; ++c) {
    kth[c] = positions[c % shape.positions].kth;
    middle[c] = positions[c % shape.positions].middle;
  }
  at::parallel_for(0, shape.filters, std::max<int64_t>(1, (1 << 14) / filter_size),
                   [&](int64_t o, int64_t end) {
    Tile tile(m, tiling.width);
    for (; o < end; ++o) {
      const bool tied = tied_position || (by_filter && is_tied(filters[o]));
      const auto apply = tied ? weigh_ties : untied;
      for (int64_t g = 0; g < shape.groups(); g += tiling.groups) {
        const int64_t used = std::min(tiling.groups, shape.groups() - g);
        const int64_t first = o * shape.groups() + g, start = first * m * shape.positions;
        move.load(from + start, used, m, shape.positions, tiling.width, tile.weight.data());
        tile.rank_blocks(m);
        if (!dense.empty()) {
          const uint8_t* stays = dense.data() + first * shape.positions;
          for (int64_t c = 0; c < used * shape.positions; ++c)
            tile.stays[c] = c10::bit_cast<float>(-static_cast<int32_t>(stays[c]));
        }
        apply(tile, shape, {o, g * m, kth.data(), middle.data()}, queries, effective);
        move.store(tile.magnitude.data(), used, m, shape.positions, tiling.width, to + start);
      }
    }
  });
  return result;
}

// grad += decay * weight wherever effective is 0.
void add_decay(at::Tensor grad, const at::Tensor& weight, const at::Tensor& effective,
               double decay) {
  for (const at::Tensor& tensor : {grad, weight, effective})
    TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == at::kFloat &&
                tensor.sizes() == grad.sizes(), "maxq_mm: unfit gradient");
  float* g = grad.data_ptr<float>();
  const float* w = weight.data_ptr<float>();
  const float* e = effective.data_ptr<float>();
  const Vec factor(static_cast<float>(decay)), zero(0);
  at::parallel_for(0, grad.numel(), 1 << 15, [&](int64_t i, int64_t end) {
    for (; i < end; i += Vec::size()) {
      const int64_t count = std::min<int64_t>(Vec::size(), end - i);
      const Vec pull = factor * Vec::loadu(w + i, count);
      const Vec pruned = Vec::loadu(e + i, count) == zero;
      (Vec::loadu(g + i, count) + (pull & pruned)).store(g + i, count);
    }
  });
}

}  // namespace

TORCH_LIBRARY(maxq_mm, library) {
  library.def("soft_mask(Tensor weight, int n, int m, int dense_count, bool largest, "
              "bool by_filter, bool by_position, float temperature, bool effective) -> Tensor");
  library.def("add_decay_(Tensor(a!) grad, Tensor weight, Tensor effective, float decay) -> ()");
}

TORCH_LIBRARY_IMPL(maxq_mm, CPU, library) {
  library.impl("soft_mask", soft_mask);
  library.impl("add_decay_", add_decay);
}
