// How rows of bytes come together; a row is one vector. AVX2.
#pragma once

#include "tiles.h"

namespace maxq {
namespace {

using Bytes = __m256i;

Bytes load(const void* from) { return _mm256_loadu_si256(static_cast<const Bytes*>(from)); }
void store(Bytes v, void* to) { _mm256_storeu_si256(static_cast<Bytes*>(to), v); }

// Blended: a store that crosses cache lines costs more than a load that does.
template <>
struct Joined<uint8_t> {
  int64_t skipped;
  Bytes is_next;
  explicit Joined(int64_t count) : skipped(count) {
    alignas(kVector) uint8_t mask[2 * kWidth];
    std::memset(mask, 0, kWidth);
    std::memset(mask + kWidth, 255, kWidth);
    is_next = load(mask + count);
  }
  void copy(const uint8_t* from, const uint8_t* next, uint8_t* to) const {
    store(_mm256_blendv_epi8(load(from + skipped), load(next - (kWidth - skipped)), is_next), to);
  }
};

// Byte shuffles of the pieces of 16 that a half of the row comes from.
template <>
struct Picked<uint8_t> {
  static constexpr int kPiece = 16;
  int counts[2] = {0, 0};
  int32_t starts[2][kPiece];
  __m128i bytes[2][kPiece];  // of a piece; negative: of another

  explicit Picked(const int32_t* at) {
    const Bytes within = _mm256_set1_epi32(kPiece - 1);
    for (int half = 0; half < 2; ++half, at += kPiece) {
      for (unsigned left = 0xffff; left != 0; ++counts[half]) {
        const int32_t start = at[__builtin_ctz(left)] & ~(kPiece - 1);
        starts[half][counts[half]] = start;
        Bytes places[2];
        for (int i = 0; i < 2; ++i) {
          const Bytes place = _mm256_sub_epi32(load(at + 8 * i), _mm256_set1_epi32(start));
          const Bytes is_here = _mm256_cmpeq_epi32(_mm256_and_si256(place, within), place);
          left &= ~(_mm256_movemask_ps(_mm256_castsi256_ps(is_here)) << 8 * i);
          places[i] = _mm256_or_si256(place, _mm256_xor_si256(is_here, _mm256_set1_epi32(-1)));
        }
        const Bytes pairs = _mm256_packs_epi32(places[0], places[1]);
        const Bytes narrow = _mm256_permute4x64_epi64(pairs, 0xd8);  // in their order
        bytes[half][counts[half]] = _mm_packs_epi16(_mm256_castsi256_si128(narrow),
                                                    _mm256_extracti128_si256(narrow, 1));
      }
    }
  }

  void copy(const uint8_t* from, uint8_t* to) const {
    for (int half = 0; half < 2; ++half) {
      __m128i all = _mm_setzero_si128();
      for (int i = 0; i < counts[half]; ++i) {
        const auto* piece = reinterpret_cast<const __m128i*>(from + starts[half][i]);
        all = _mm_or_si128(all, _mm_shuffle_epi8(_mm_loadu_si128(piece), bytes[half][i]));
      }
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + half * kPiece), all);
    }
  }
};

// A first layer: few channels, every second pixel, many kernel positions. What a row of outputs reads
// of a row of a channel becomes a line once, of which a kernel position takes every second byte.
template <>
struct Lines<uint8_t> {
  static constexpr int64_t kMost = 48, kReach = 32, kBefore = 2 * kWidth, kSize = 6 * kWidth;
  static bool fits(const Op& op) {
    return op.stride[1] == 2 && op.in.c * op.kernel[0] <= kMost && op.in.c < op.kernel[1] &&
           (op.kernel[1] - 1) * op.dilation[1] <= kReach;
  }

  // A pixel of the first output is at kBefore, and there may be anything around what is asked for.
  static void read(const Source<uint8_t>& source, int64_t tile_size, int64_t channel, int64_t pixel,
                   int64_t count, uint8_t* to) {
    const int64_t first = floor_divide(pixel, kWidth), skipped = pixel - first * kWidth;
    const uint8_t* places = source.places + channel * kWidth;
    auto index = static_cast<int32_t>(first);
    to += kBefore - skipped;
    for (int64_t x = -skipped; x < count; x += kWidth, ++index, to += kWidth)
      store(load(places + source.place(index) * tile_size), to);
  }

  static Bytes every_second(const uint8_t* from) {
    const Bytes even = _mm256_set1_epi16(255);
    const Bytes a = _mm256_and_si256(load(from), even);
    const Bytes b = _mm256_and_si256(load(from + kWidth), even);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
  }

  static void gather(const Op& op, const Source<uint8_t>& source, int64_t first, uint8_t* to) {
    const int64_t channels = op.in.c, pitch = op.out.pitch;
    uint8_t lines[kMost * kSize];
    // Rows of outputs that the tile has pixels of.
    for (int64_t begin = 0; begin < kWidth;) {
      const int64_t y = (first + begin) / pitch, x = (first + begin) % pitch;
      const int64_t end = begin + pitch - x < kWidth ? begin + pitch - x : kWidth;
      const int64_t last = op.out.w - x < end - begin ? op.out.w - x : end - begin;
      if (y >= op.out.h) break;
      if (last > 0) {
        const int64_t count = 2 * (last - 1) + (op.kernel[1] - 1) * op.dilation[1] + 1;
        for (int64_t ky = 0; ky < op.kernel[0]; ++ky) {
          const int64_t row = y * op.stride[0] + ky * op.dilation[0] - op.padding[0];
          for (int64_t c = 0; c < channels; ++c)
            read(source, channels * kWidth, c, row * op.in.pitch + 2 * x - op.padding[1], count,
                 lines + (ky * channels + c) * kSize);
        }
        write(op, lines, begin, to);
      }
      begin = end;
    }
  }

  // Of outputs from `begin` on.
  static void write(const Op& op, const uint8_t* lines, int64_t begin, uint8_t* to) {
    alignas(kVector) uint8_t masks[2 * kWidth];
    std::memset(masks, 0, kWidth);
    std::memset(masks + kWidth, 255, kWidth);
    const Bytes is_here = load(masks + kWidth - begin);
    for (int64_t ky = 0; ky < op.kernel[0]; ++ky)
      for (int64_t kx = 0; kx < op.kernel[1]; ++kx) {
        const uint8_t* line = lines + ky * op.in.c * kSize + kBefore + kx * op.dilation[1] - 2 * begin;
        for (int64_t c = 0; c < op.in.c; ++c, line += kSize, to += kWidth)
          store(_mm256_blendv_epi8(load(to), every_second(line), is_here), to);
      }
  }
};

}  // namespace
}  // namespace maxq
