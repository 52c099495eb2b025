// Vectors of 64 bytes, and 16 sums of four products each: what outputs_int8.h needs of AVX-512 with
// VBMI and VNNI, or in plain C++.
#pragma once

#include "lanes.h"

namespace maxq {
namespace {

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

struct Bytes {
  __m512i v;
  static Bytes load(const void* from) {
    Bytes result{_mm512_loadu_si512(from)};
    asm("" : "+v"(result.v));  // once, into a register: compilers took it from memory at each use
    return result;
  }
  static Bytes fill(const void* four) {
    int32_t value;
    std::memcpy(&value, four, sizeof value);
    return {_mm512_set1_epi32(value)};
  }
  Bytes permuted(Bytes columns) const { return {_mm512_permutexvar_epi8(columns.v, v)}; }
};

struct Sums {
  __m512i v;
  static Sums none() { return {_mm512_setzero_si512()}; }
  // Four unsigned times four signed bytes each.
  Sums dot(Bytes a, Bytes b) const { return {_mm512_dpbusd_epi32(v, a.v, b.v)}; }
  Lanes numbers() const { return {_mm512_cvtepi32_ps(v)}; }
};

// 16 bytes as numbers, and the nearest bytes, at least `least`.
Lanes numbers(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
void store_bytes(Lanes value, int32_t least, uint8_t* to) {
  const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(value.v, _mm512_set1_ps(255.f)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_set1_epi32(least))));
}
Lanes multiplied(Lanes a, Lanes b, Lanes sum) { return sum.fma(a, b); }
#else

struct Bytes {
  uint8_t v[64];
  static Bytes load(const void* from) {
    Bytes result;
    std::memcpy(result.v, from, sizeof result.v);
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
};

struct Sums {
  int32_t v[16];
  static Sums none() { return {}; }
  Sums dot(const Bytes& a, const Bytes& b) const {
    Sums result = *this;
    for (int i = 0; i < 64; ++i) result.v[i / 4] += a.v[i] * static_cast<int8_t>(b.v[i]);
    return result;
  }
  Lanes numbers() const { return Lanes::of([&](int i) { return static_cast<float>(v[i]); }); }
};

Lanes numbers(const uint8_t* from) {
  return Lanes::of([&](int i) { return static_cast<float>(from[i]); });
}
void store_bytes(const Lanes& value, int32_t least, uint8_t* to) {
  for (int i = 0; i < Lanes::kSize; ++i) {
    to[i] = to_byte(value.v[i]);
    if (to[i] < least) to[i] = static_cast<uint8_t>(least);
  }
}
// Rounded once, as the others do.
Lanes multiplied(const Lanes& a, const Lanes& b, const Lanes& sum) {
  return Lanes::of([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], sum.v[i]); });
}
#endif

}  // namespace
}  // namespace maxq
