// Vectors of floats: what the kernels need of an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "values.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace maxq {
namespace {

#if LANES == 8

struct Lanes {
  static constexpr int kSize = 8;
  __m256 v;
  static Lanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Lanes fill(float value) { return {_mm256_set1_ps(value)}; }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  Lanes fma(Lanes a, Lanes b) const { return {_mm256_fmadd_ps(a.v, b.v, v)}; }
  Lanes plus(Lanes a) const { return {_mm256_add_ps(v, a.v)}; }
  Lanes relu() const { return {_mm256_max_ps(_mm256_setzero_ps(), v)}; }  // keeps NaN
  Lanes where(const float* mask) const { return {_mm256_and_ps(v, _mm256_loadu_ps(mask))}; }
};
#elif defined(__AVX512F__)

// Where a lane comes from: 0 to 15, or to 31 of two vectors.
struct Columns {
  __m512i v;
  static Columns load(const uint8_t* from) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
};

struct Lanes {
  static constexpr int kSize = 16;
  __m512 v;
  Lanes permuted(Columns columns) const { return {_mm512_permutexvar_ps(columns.v, v)}; }
  Lanes permuted(Lanes high, Columns columns) const {
    return {_mm512_permutex2var_ps(v, columns.v, high.v)};
  }
  static Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Lanes fill(float value) { return {_mm512_set1_ps(value)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  // Past the caches, to where a line of 64 bytes begins; others see it after a fence.
  void stream(float* to) const { _mm512_stream_ps(to, v); }
  static void fence() { _mm_sfence(); }
  // The first `count`, at most 16.
  static Lanes load(const float* from, int64_t count) {
    return {_mm512_maskz_loadu_ps(first(count), from)};
  }
  void store(float* to, int64_t count) const { _mm512_mask_storeu_ps(to, first(count), v); }
  // Bytes less `zero`.
  static Lanes load(const uint8_t* from, int64_t count, int32_t zero) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(count), from);
    const __m512i numbers = _mm512_cvtepu8_epi32(bytes);
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(numbers, _mm512_set1_epi32(zero)))};
  }
  void store(uint8_t* to, int64_t count) const {
    _mm_mask_storeu_epi8(to, first(count), _mm512_cvtusepi32_epi8(bytes()));
  }
  // The nearest bytes as numbers; of no number 255.
  __m512i bytes() const {
    return _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(255.f))),
                            _mm512_setzero_si512());
  }
  Lanes times(Lanes a) const { return {_mm512_mul_ps(v, a.v)}; }
  Lanes fma(Lanes a, Lanes b) const { return {_mm512_fmadd_ps(a.v, b.v, v)}; }
  Lanes plus(Lanes a) const { return {_mm512_add_ps(v, a.v)}; }
  Lanes relu() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }
  Lanes where(const float* mask) const {
    return {_mm512_castsi512_ps(_mm512_and_si512(
        _mm512_castps_si512(v), _mm512_castps_si512(_mm512_loadu_ps(mask))))};
  }

 private:
  static __mmask16 first(int64_t count) {
    return static_cast<__mmask16>(count < kSize ? (1u << count) - 1 : 0xFFFFu);
  }
};

inline Lanes multiplied(Lanes a, Lanes b, Lanes sum) { return sum.fma(a, b); }

// Lane j of number i becomes lane i of number j.
inline void transpose(Lanes (&rows)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  // b[4 k + j] has columns j, 4 + j, 8 + j, 12 + j of rows 4 k to 4 k + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 first = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88);
    const __m512 second = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 third = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xDD);
    const __m512 fourth = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xDD);
    rows[j].v = _mm512_shuffle_f32x4(first, second, 0x88);
    rows[8 + j].v = _mm512_shuffle_f32x4(first, second, 0xDD);
    rows[4 + j].v = _mm512_shuffle_f32x4(third, fourth, 0x88);
    rows[12 + j].v = _mm512_shuffle_f32x4(third, fourth, 0xDD);
  }
}

// 16 pixels of `count` channels of a byte each, in four bytes a pixel.
inline void store_quads(const Lanes* channels, int64_t count, uint8_t* to) {
  __m512i quads = _mm512_setzero_si512();
  for (int64_t c = 0; c < count; ++c)
    quads = _mm512_or_si512(quads, _mm512_sllv_epi32(channels[c].bytes(),
                                                     _mm512_set1_epi32(8 * static_cast<int>(c))));
  _mm512_storeu_si512(to, quads);
}
#else

// The same 16 lanes in plain C++, so that what is written for them is tested anywhere; slow.
struct Columns {
  const uint8_t* v;
  static Columns load(const uint8_t* from) { return {from}; }
};

struct Lanes {
  static constexpr int kSize = 16;
  float v[kSize];
  Lanes permuted(Columns columns) const { return of([&](int i) { return v[columns.v[i] & 15]; }); }
  Lanes permuted(Lanes high, Columns columns) const {
    return of([&](int i) {
      return columns.v[i] & 16 ? high.v[columns.v[i] & 15] : v[columns.v[i] & 15];
    });
  }
  template <typename Use>
  static Lanes of(const Use& use) {
    Lanes result;
    for (int i = 0; i < kSize; ++i) result.v[i] = use(i);
    return result;
  }
  static Lanes load(const float* from) { return of([&](int i) { return from[i]; }); }
  static Lanes fill(float value) { return of([&](int) { return value; }); }
  void store(float* to) const { std::memcpy(to, v, sizeof v); }
  void stream(float* to) const { store(to); }
  static void fence() {}
  static Lanes load(const float* from, int64_t count) {
    return of([&](int i) { return i < count ? from[i] : 0.f; });
  }
  void store(float* to, int64_t count) const {
    for (int i = 0; i < kSize && i < count; ++i) to[i] = v[i];
  }
  static Lanes load(const uint8_t* from, int64_t count, int32_t zero) {
    return of([&](int i) { return static_cast<float>((i < count ? from[i] : 0) - zero); });
  }
  void store(uint8_t* to, int64_t count) const {
    for (int i = 0; i < kSize && i < count; ++i) to[i] = to_byte(v[i]);
  }
  Lanes times(Lanes a) const { return of([&](int i) { return v[i] * a.v[i]; }); }
  Lanes fma(Lanes a, Lanes b) const { return of([&](int i) { return a.v[i] * b.v[i] + v[i]; }); }
  Lanes plus(Lanes a) const { return of([&](int i) { return v[i] + a.v[i]; }); }
  Lanes relu() const { return of([&](int i) { return v[i] < 0 ? 0.f : v[i]; }); }
  Lanes where(const float* mask) const {
    return of([&](int i) { return mask[i] == 0 ? 0.f : v[i]; });
  }
};

// Rounded once, as the others do.
inline Lanes multiplied(const Lanes& a, const Lanes& b, const Lanes& sum) {
  return Lanes::of([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], sum.v[i]); });
}

inline void transpose(Lanes (&rows)[16]) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      const float one = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = one;
    }
}

inline void store_quads(const Lanes* channels, int64_t count, uint8_t* to) {
  for (int i = 0; i < 16; ++i)
    for (int64_t c = 0; c < 4; ++c) to[4 * i + c] = c < count ? to_byte(channels[c].v[i]) : 0;
}
#endif

}  // namespace
}  // namespace maxq
