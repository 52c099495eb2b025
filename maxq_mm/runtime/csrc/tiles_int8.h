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

// Byte shuffles of the pieces of 16 that a half of the row comes from, unless rows are few.
template <>
struct Picked<uint8_t> {
  static constexpr int kPiece = 16, kFew = 8;
  struct Piece {
    int32_t at;
    alignas(kPiece) uint8_t bytes[kPiece];  // 128: of another piece
  };
  const int32_t* places;
  int counts[2] = {0, 0};
  Piece pieces[2][kPiece];

  Picked(const int32_t* at, int64_t rows) : places(at) {
    if (rows <= kFew) return;
    for (int i = 0; i < kWidth; ++i) {
      const int half = i / kPiece;
      const int32_t start = at[i] & ~(kPiece - 1);
      int& count = counts[half];
      int found = count;
      while (found > 0 && pieces[half][found - 1].at != start) --found;
      if (found == 0) {
        found = ++count;
        pieces[half][found - 1].at = start;
        std::memset(pieces[half][found - 1].bytes, 128, kPiece);
      }
      pieces[half][found - 1].bytes[i % kPiece] = static_cast<uint8_t>(at[i] - start);
    }
  }

  void copy(const uint8_t* from, uint8_t* to) const {
    if (counts[0] == 0) {
      for (int i = 0; i < kWidth; ++i) to[i] = from[places[i]];
      return;
    }
    const auto vector = [](const uint8_t* at) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    };
    for (int half = 0; half < 2; ++half) {
      __m128i all = _mm_setzero_si128();
      for (int i = 0; i < counts[half]; ++i) {
        const Piece& piece = pieces[half][i];
        all = _mm_or_si128(all, _mm_shuffle_epi8(vector(from + piece.at), vector(piece.bytes)));
      }
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + half * kPiece), all);
    }
  }
};

}  // namespace
}  // namespace maxq
