// Vectors of floats: what the kernels need of an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

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
constexpr int kOutputs = 3;  // 12 accumulators of 16 registers

#elif defined(__AVX512F__)

struct Lanes {
  static constexpr int kSize = 16;
  __m512 v;
  static Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Lanes fill(float value) { return {_mm512_set1_ps(value)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  Lanes fma(Lanes a, Lanes b) const { return {_mm512_fmadd_ps(a.v, b.v, v)}; }
  Lanes plus(Lanes a) const { return {_mm512_add_ps(v, a.v)}; }
  Lanes relu() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }
  Lanes where(const float* mask) const {
    return {_mm512_castsi512_ps(_mm512_and_si512(
        _mm512_castps_si512(v), _mm512_castps_si512(_mm512_loadu_ps(mask))))};
  }
};
constexpr int kOutputs = 6;  // 24 accumulators of 32 registers

#else

// The same 16 lanes in plain C++, so that what is written for them is tested anywhere; slow.
struct Lanes {
  static constexpr int kSize = 16;
  float v[kSize];
  template <typename Use>
  static Lanes of(const Use& use) {
    Lanes result;
    for (int i = 0; i < kSize; ++i) result.v[i] = use(i);
    return result;
  }
  static Lanes load(const float* from) { return of([&](int i) { return from[i]; }); }
  static Lanes fill(float value) { return of([&](int) { return value; }); }
  void store(float* to) const { std::memcpy(to, v, sizeof v); }
  Lanes fma(Lanes a, Lanes b) const { return of([&](int i) { return a.v[i] * b.v[i] + v[i]; }); }
  Lanes plus(Lanes a) const { return of([&](int i) { return v[i] + a.v[i]; }); }
  Lanes relu() const { return of([&](int i) { return v[i] < 0 ? 0.f : v[i]; }); }
  Lanes where(const float* mask) const {
    return of([&](int i) { return mask[i] == 0 ? 0.f : v[i]; });
  }
};
constexpr int kOutputs = 6;

#endif

}  // namespace
}  // namespace maxq
