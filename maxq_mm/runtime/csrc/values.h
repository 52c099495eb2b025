// What the two kinds of elements, floats and bytes, are to what moves them; see runtime.h.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace maxq {
namespace {

float larger(float a, float b) { return a > b || a != a ? a : b; }  // NaN wins, as in torch
uint8_t larger(uint8_t a, uint8_t b) { return a > b ? a : b; }

template <typename T>
struct Element;
template <>
struct Element<float> {
  using Other = uint8_t;
  static constexpr float kLowest = -__builtin_inff();
};
template <>
struct Element<uint8_t> {
  using Other = float;
  static constexpr uint8_t kLowest = 0;
};

// The nearest byte, ties to even. Nothing here may be contracted: every set gives the same bits.
uint8_t to_byte(float value) {
  value = value < 255.f ? value : 255.f;  // NaN: 255
  value = value > 0.f ? value : 0.f;
  return static_cast<uint8_t>(static_cast<int32_t>(__builtin_rintf(value)));
}

// Scales and zero points of an operator, by value: bytes may alias anything.
struct Scales {
  float factor, other_factor, offset;
  int32_t in_zero, other_zero, out_zero;
  explicit Scales(const Op& op)
      : factor(op.factor), other_factor(op.other_factor), offset(op.offset),
        in_zero(static_cast<int32_t>(op.in.zero)), other_zero(static_cast<int32_t>(op.other.zero)),
        out_zero(static_cast<int32_t>(op.out.zero)) {}
};

// Those of each channel of what becomes bytes.
struct ChannelScales {
  Scales whole;
  const float *factors, *offsets;  // of an image, else null
  explicit ChannelScales(const Op& op) : whole(op), factors(op.scales), offsets(op.bias) {}
  Scales operator[](int64_t c) const {
    Scales own = whole;
    if (factors) own.factor = factors[c], own.offset = offsets[c], own.out_zero = to_byte(offsets[c]);
    return own;
  }
};

float plus(const Scales&, float a, float b) { return a + b; }
uint8_t plus(const Scales& s, uint8_t a, uint8_t b) {
  const float first = __builtin_fmaf(static_cast<float>(a - s.in_zero), s.factor, s.offset);
  return to_byte(__builtin_fmaf(static_cast<float>(b - s.other_zero), s.other_factor, first));
}

float relu(const Scales&, float a) { return a < 0 ? 0.f : a; }
uint8_t relu(const Scales& s, uint8_t a) {
  const auto zero = static_cast<uint8_t>(s.out_zero);
  return a < zero ? zero : a;
}

// Between floats and elements.
void convert(const Scales&, float from, float& to) { to = from; }
void convert(const Scales& s, float from, uint8_t& to) {
  to = to_byte(__builtin_fmaf(from, s.factor, s.offset));
}
void convert(const Scales& s, uint8_t from, float& to) {
  to = static_cast<float>(from - s.in_zero) * s.factor;
}

// The nearest of `from` pixels for pixel i of `to`, as torch has it.
int64_t nearest(int64_t i, int64_t from, int64_t to) {
  const auto index = static_cast<int64_t>(i * (static_cast<float>(from) / to));
  return index < from ? index : from - 1;
}

}  // namespace
}  // namespace maxq
