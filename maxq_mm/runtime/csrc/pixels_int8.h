// What pixels.h does, in bytes: uint8 activations, int8 weights, exact sums in int32; AVX2.
//
// A row of a tile is one vector. Four rows are interleaved such that each 32 bits hold four inputs of
// one pixel, and are multiplied by four weights: pairs of products are added in int16, which does
// not saturate (see quantization.py), pairs of those in int32. Interleaving leaves the pixels in an
// order that narrowing the sums to bytes undoes. A dense layer's rows are interleaved once, not
// for each output.
#pragma once

#include "tiles_int8.h"

namespace maxq {
namespace {

constexpr int kTogether = 4;  // rows

// Vector p has, lane by lane of 128 bits, pixels 4 p to 4 p + 3 and 16 further on, of all four rows.
struct Four {
  Bytes v[4];
  Four(Bytes a, Bytes b, Bytes c, Bytes d) {
    const Bytes low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    const Bytes low2 = _mm256_unpacklo_epi8(c, d), high2 = _mm256_unpackhi_epi8(c, d);
    v[0] = _mm256_unpacklo_epi16(low, low2);
    v[1] = _mm256_unpackhi_epi16(low, low2);
    v[2] = _mm256_unpacklo_epi16(high, high2);
    v[3] = _mm256_unpackhi_epi16(high, high2);
  }
};

// Pixels in that order, as numbers.
struct Numbers {
  __m256 v[4];
  explicit Numbers(const Bytes* sums) {
    for (int p = 0; p < 4; ++p) v[p] = _mm256_cvtepi32_ps(sums[p]);
  }
  explicit Numbers(const uint8_t* row) {
    const Bytes none = _mm256_setzero_si256();
    const Four wide(load(row), none, none, none);
    for (int p = 0; p < 4; ++p) v[p] = _mm256_cvtepi32_ps(wide.v[p]);
  }
};

template <bool kDense>
struct Int8 {
  using T = uint8_t;
  using Weight = int8_t;
  using Sum = int32_t;
  using Group = maxq::Group<T, Weight, Sum>;
  static constexpr bool kIsDense = kDense;
  static constexpr int kOutputs = 1;
  static int64_t rows(const Op& op) { return op.block_rows + kTogether; }
  static int64_t weights(const Op& op, int64_t rows) {
    return divide_up(rows * op.steps / op.block_rows, kTogether) * kTogether;
  }
  static void prepare(Group& group, uint8_t* to, int64_t rows);
  static void multiply(const Group& group);
};

template <bool kDense>
void Int8<kDense>::prepare(Group& group, uint8_t* to, int64_t rows) {
  if constexpr (kDense) {
    const uint8_t* from = group.inputs;
    group.inputs = to;
    for (int64_t row = 0; row < rows; row += kTogether) {
      const Four four(load(from), load(from + kWidth), load(from + 2 * kWidth),
                      load(from + 3 * kWidth));
      for (int p = 0; p < 4; ++p) store(four.v[p], to + p * kWidth);
      from += kTogether * kWidth;
      to += kTogether * kWidth;
    }
  }
}

inline void finish_bytes(const Op& op, const Tile<uint8_t>& tile, const Numbers& result,
                         char* out) {
  const __m256 most = _mm256_set1_ps(255.f);
  Bytes whole[4];
  for (int p = 0; p < 4; ++p) whole[p] = _mm256_cvtps_epi32(_mm256_min_ps(result.v[p], most));
  Bytes bytes = _mm256_packus_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                    _mm256_packs_epi32(whole[2], whole[3]));
  const Bytes zero = _mm256_set1_epi8(static_cast<char>(op.out.zero));
  if (op.relu) bytes = _mm256_max_epu8(bytes, zero);
  if (tile.is_masked) bytes = _mm256_blendv_epi8(zero, bytes, load(tile.mask));
  store(bytes, out);
}

void finish_floats(const Op& op, const Tile<uint8_t>& tile, const Numbers& result, char* to) {
  float* out = reinterpret_cast<float*>(to);
  for (int i = 0; i < 4; ++i) {
    const __m256 a = result.v[i % 2 * 2], b = result.v[i % 2 * 2 + 1];
    __m256 v = i < 2 ? _mm256_permute2f128_ps(a, b, 0x20) : _mm256_permute2f128_ps(a, b, 0x31);
    if (op.relu) v = _mm256_max_ps(_mm256_setzero_ps(), v);
    if (tile.is_masked) {
      const auto* mask = reinterpret_cast<const __m128i*>(tile.mask + 8 * i);
      v = _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(mask))));
    }
    _mm256_storeu_ps(out + 8 * i, v);
  }
}

template <bool kDense>
void Int8<kDense>::multiply(const Group& group) {
  const Op& op = *group.op;
  const Bytes one = _mm256_set1_epi16(1);
  Bytes sum[4];
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p)
    sum[p] = group.is_first ? _mm256_setzero_si256() : load(group.sums + 8 * p);
  const uint8_t* inputs = group.inputs;
  for (int64_t i = 0; i < group.count; i += kTogether) {
    int32_t weights;
    std::memcpy(&weights, group.values + i, sizeof weights);
    const Bytes value = _mm256_set1_epi32(weights);
    const auto add = [&](int p, Bytes input) {
      sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(_mm256_maddubs_epi16(input, value), one));
    };
    if constexpr (kDense) {
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) add(p, load(inputs + p * kWidth));
      inputs += kTogether * kWidth;
    } else {
      const uint16_t* rows = group.rows + i;
      const Four four(load(inputs + rows[0]), load(inputs + rows[1]), load(inputs + rows[2]),
                      load(inputs + rows[3]));
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) add(p, four.v[p]);
    }
  }
  if (!group.is_last) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) store(sum[p], group.sums + 8 * p);
    return;
  }
  const __m256 scale = _mm256_set1_ps(op.scales[group.output]);
  const __m256 bias = _mm256_set1_ps(op.bias[group.output] + op.offset);
  Numbers result(sum);
  for (int p = 0; p < 4; ++p) result.v[p] = _mm256_fmadd_ps(result.v[p], scale, bias);
  if (group.residual) {
    const Numbers other(group.residual);
    const __m256 factor = _mm256_set1_ps(op.other_factor);
    for (int p = 0; p < 4; ++p) result.v[p] = _mm256_fmadd_ps(other.v[p], factor, result.v[p]);
  }
  if (op.out.element == 1)
    finish_bytes(op, *group.tile, result, group.out);
  else
    finish_floats(op, *group.tile, result, group.out);
}

}  // namespace
}  // namespace maxq
