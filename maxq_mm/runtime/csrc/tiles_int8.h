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
        const Bytes narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(places[0], places[1]), 0xd8);
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

}  // namespace
}  // namespace maxq
