// Vectors of 64 bytes, and 16 sums of four products each: what outputs_int8.h needs of AVX-512 with
// VBMI and VNNI, or in plain C++.
//
// Four vectors of 16 numbers stand for 64 channels of a pixel: channel 16 q + 4 g + j is lane 4 q + j
// of vector g, which is how packing four vectors leaves their bytes in order.
#pragma once

#include "lanes.h"

namespace maxq {
namespace {

constexpr int kQuad = 4;  // vectors of numbers that become one of bytes

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

struct Bytes {
  __m512i v;
  static Bytes load(const void* from) { return {_mm512_loadu_si512(from)}; }
  // The first `count`, at most 64.
  static Bytes load(const uint8_t* from, int64_t count) {
    return {_mm512_maskz_loadu_epi8(mask(count), from)};
  }
  static Bytes fill(const void* four) {
    int32_t value;
    std::memcpy(&value, four, sizeof value);
    return {_mm512_set1_epi32(value)};
  }
  Bytes permuted(Bytes columns) const { return {_mm512_permutexvar_epi8(columns.v, v)}; }
  void store(uint8_t* to, int64_t count) const { _mm512_mask_storeu_epi8(to, mask(count), v); }

 private:
  static __mmask64 mask(int64_t count) { return ~__mmask64{0} >> (64 - count); }
};

struct Sums {
  __m512i v;
  static Sums none() { return {_mm512_setzero_si512()}; }
  static Sums load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
  void store(int32_t* to) const { _mm512_storeu_si512(to, v); }
  // Four unsigned times four signed bytes each.
  Sums dot(Bytes a, Bytes b) const { return {_mm512_dpbusd_epi32(v, a.v, b.v)}; }
  Lanes numbers() const { return {_mm512_cvtepi32_ps(v)}; }
};

// Vector `group` of what the bytes of 64 channels are.
inline Lanes numbers(Bytes bytes, int group) {
  const char at = static_cast<char>(4 * group), none = -1;
  const __m128i places = _mm_setr_epi8(
      at, none, none, none, static_cast<char>(at + 1), none, none, none,
      static_cast<char>(at + 2), none, none, none, static_cast<char>(at + 3), none, none, none);
  return {_mm512_cvtepi32_ps(_mm512_shuffle_epi8(bytes.v, _mm512_broadcast_i32x4(places)))};
}

// The nearest bytes, at least `least`; of no number 255.
inline Bytes packed(const Lanes (&value)[kQuad], uint8_t least) {
  const __m512 most = _mm512_set1_ps(255.f);
  __m512i whole[kQuad];
#pragma GCC unroll 4
  for (int g = 0; g < kQuad; ++g) whole[g] = _mm512_cvtps_epi32(_mm512_min_ps(value[g].v, most));
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(whole[0], whole[1]),
                                            _mm512_packs_epi32(whole[2], whole[3]));
  return {_mm512_max_epu8(bytes, _mm512_set1_epi8(static_cast<char>(least)))};
}

// In the order of the channels.
inline void put_in_order(Lanes (&value)[kQuad]) {
  const __m512 low = _mm512_shuffle_f32x4(value[0].v, value[1].v, 0x44);
  const __m512 low_other = _mm512_shuffle_f32x4(value[2].v, value[3].v, 0x44);
  const __m512 high = _mm512_shuffle_f32x4(value[0].v, value[1].v, 0xEE);
  const __m512 high_other = _mm512_shuffle_f32x4(value[2].v, value[3].v, 0xEE);
  value[0].v = _mm512_shuffle_f32x4(low, low_other, 0x88);
  value[1].v = _mm512_shuffle_f32x4(low, low_other, 0xDD);
  value[2].v = _mm512_shuffle_f32x4(high, high_other, 0x88);
  value[3].v = _mm512_shuffle_f32x4(high, high_other, 0xDD);
}
#else

struct Bytes {
  uint8_t v[64];
  static Bytes load(const void* from) { return load(static_cast<const uint8_t*>(from), 64); }
  static Bytes load(const uint8_t* from, int64_t count) {
    Bytes result{};
    std::memcpy(result.v, from, count);
    return result;
  }
  static Bytes fill(const void* four) {
    Bytes result;
    for (int i = 0; i < 64; i += 4) std::memcpy(result.v + i, four, 4);
    return result;
  }
  Bytes permuted(const Bytes& columns) const {
    Bytes result;
    for (int i = 0; i < 64; ++i) result.v[i] = v[columns.v[i] & 63];
    return result;
  }
  void store(uint8_t* to, int64_t count) const { std::memcpy(to, v, count); }
};

struct Sums {
  int32_t v[16];
  static Sums none() { return {}; }
  static Sums load(const int32_t* from) {
    Sums result;
    std::memcpy(result.v, from, sizeof result.v);
    return result;
  }
  void store(int32_t* to) const { std::memcpy(to, v, sizeof v); }
  Sums dot(const Bytes& a, const Bytes& b) const {
    Sums result = *this;
    for (int i = 0; i < 64; ++i) result.v[i / 4] += a.v[i] * static_cast<int8_t>(b.v[i]);
    return result;
  }
  Lanes numbers() const { return Lanes::of([&](int i) { return static_cast<float>(v[i]); }); }
};

inline int channel_of(int group, int lane) { return lane / 4 * 16 + 4 * group + lane % 4; }

inline Lanes numbers(const Bytes& bytes, int group) {
  return Lanes::of([&](int i) { return static_cast<float>(bytes.v[channel_of(group, i)]); });
}

inline Bytes packed(const Lanes (&value)[kQuad], uint8_t least) {
  Bytes result;
  for (int g = 0; g < kQuad; ++g)
    for (int i = 0; i < Lanes::kSize; ++i) {
      const uint8_t byte = to_byte(value[g].v[i]);
      result.v[channel_of(g, i)] = byte < least ? least : byte;
    }
  return result;
}

inline void put_in_order(Lanes (&value)[kQuad]) {
  float channels[kQuad * Lanes::kSize];
  for (int g = 0; g < kQuad; ++g)
    for (int i = 0; i < Lanes::kSize; ++i) channels[channel_of(g, i)] = value[g].v[i];
  for (int g = 0; g < kQuad; ++g) value[g] = Lanes::load(channels + g * Lanes::kSize);
}
#endif

}  // namespace
}  // namespace maxq
