// Dense layers in bytes by matrix instructions (AMX): one multiplies 16 pixels by 16 outputs over 64
// inputs, 16384 multiply-adds, exactly.
//
// A block is 32 pixels by 64 outputs, worked on as two times 2 x 2 such products. Pixels of a product
// lie at even distances, or are put side by side first.
#pragma once

#include "outputs_int8.h"

namespace maxq {
namespace {

constexpr int kTilePixels = 16, kTileBytes = 64;

#if defined(__AMX_INT8__)

// Eight registers of 16 rows of 64 bytes, for as long as this lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < 8; ++i) shapes.bytes[i] = kTileBytes, shapes.rows[i] = kTilePixels;
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }

  void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // Adds inputs of twice 16 pixels times weights of twice 16 outputs.
  void add(const uint8_t* in, int64_t step, const uint8_t* other_in, int64_t other_step,
           const int8_t* weights, int64_t weights_step) {
    _tile_loadd(4, in, step);
    _tile_loadd(6, weights, weights_step);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, weights + kTileBytes, weights_step);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, other_in, other_step);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  // Sums of 32 pixels, `step` apart, of 32 outputs.
  void store(int32_t* to, int64_t step) {
    const int64_t bytes = step * static_cast<int64_t>(sizeof *to);
    _tile_stored(0, to, bytes);
    _tile_stored(1, to + Lanes::kSize, bytes);
    _tile_stored(2, to + kTilePixels * step, bytes);
    _tile_stored(3, to + kTilePixels * step + Lanes::kSize, bytes);
  }
};
#else

struct Tiles {
  int32_t sums[2 * kTilePixels][2 * Lanes::kSize];
  void clear() { std::memset(sums, 0, sizeof sums); }
  void add(const uint8_t* in, int64_t step, const uint8_t* other_in, int64_t other_step,
           const int8_t* weights, int64_t weights_step) {
    for (int i = 0; i < 2 * kTilePixels; ++i) {
      const uint8_t* from = i < kTilePixels ? in + i * step
                                            : other_in + (i - kTilePixels) * other_step;
      for (int k = 0; k < kTileBytes; ++k)
        for (int o = 0; o < 2 * Lanes::kSize; ++o)
          sums[i][o] += from[k] * weights[k / 4 * weights_step + 4 * o + k % 4];
    }
  }
  void store(int32_t* to, int64_t step) {
    for (int i = 0; i < 2 * kTilePixels; ++i)
      std::memcpy(to + i * step, sums[i], sizeof sums[i]);
  }
};
#endif

struct Matrix {
  using T = uint8_t;
  using Weight = int8_t;
  static constexpr int kPixels = 2 * kTilePixels;
  static constexpr int kBlocks = 4;
  static constexpr int kOutputs = kOutputBytes;
  using Block = maxq::Block<uint8_t, kPixels>;

  const Op& op;
  int32_t* const sums;   // of a block
  uint8_t* const lines;  // of each block, its inputs side by side
  const int64_t gathered;  // bytes of those
  Tiles tiles;
  int64_t first_output = -1;

  Matrix(const Op& op, float* scratch)
      : op(op), sums(reinterpret_cast<int32_t*>(scratch)),
        lines(reinterpret_cast<uint8_t*>(scratch + kPixels * kOutputs)),
        gathered(inputs(op) * kPixels) {}

  static int64_t weights(const Op& op) { return Int8<true>::weights(op); }
  // Of a pixel.
  static int64_t inputs(const Op& op) { return weights(op) / kOutputs; }
  static int64_t scratch(const Op& op) {
    constexpr int64_t kFloat = sizeof(float);
    return kPixels * kOutputs + kBlocks * inputs(op) * kPixels / kFloat;
  }

  // The distance of 16 pixels, 0 if they have none in common.
  static int64_t step_of(const uint8_t* const* in, int64_t count) {
    const int64_t step = in[1] - in[0];
    for (int i = 2; i < count; ++i)
      if (in[i] - in[i - 1] != step) return 0;
    return count > 1 ? step : 0;
  }

  // Inputs of 16 pixels side by side, in the order of the weights.
  void gather(const uint8_t* const* in, uint8_t* to) const {
    for_quads(op, [&](int64_t shift) {
      for (int64_t k = 0; k < op.steps * 4; k += kTileBytes, to += kTilePixels * kTileBytes)
        for (int i = 0; i < kTilePixels; ++i)
          std::memcpy(to + i * kTileBytes, in[i] + shift + k, kTileBytes);
    });
  }

  void multiply(int64_t number, const Block& block, int64_t output, Weights<int8_t> w) {
    if (first_output < 0) first_output = output;
    // A tile of pixels is read where it lies, or from where it was put.
    const uint8_t* from[2];
    int64_t step[2];
    bool is_put[2];
    for (int half = 0; half < 2; ++half) {
      const uint8_t* const* in = block.in + half * kTilePixels;
      const int64_t left = block.count - half * kTilePixels;
      step[half] = left >= kTilePixels ? step_of(in, kTilePixels) : 0;
      is_put[half] = step[half] == 0;
      from[half] = in[0];
      if (!is_put[half]) continue;
      uint8_t* to = lines + number * gathered + half * gathered / 2;
      if (output == first_output) gather(in, to);
      from[half] = to;
      step[half] = kTileBytes;
    }
    constexpr int64_t kRow = kOutputs * 4;  // bytes of four inputs' weights
    for (int half = 0; half < 2; ++half) {
      const int8_t* values = w.values + half * kRow / 2;
      const uint8_t *put = from[0], *other_put = from[1];
      tiles.clear();
      for_quads(op, [&](int64_t shift) {
        for (int64_t k = 0; k < op.steps * 4; k += kTileBytes) {
          const uint8_t* in = is_put[0] ? put : from[0] + shift + k;
          const uint8_t* other = is_put[1] ? other_put : from[1] + shift + k;
          tiles.add(in, step[0], other, step[1], values, kRow);
          put += kTilePixels * kTileBytes;
          other_put += kTilePixels * kTileBytes;
          values += kTileBytes / 4 * kRow;
        }
      });
      tiles.store(sums + half * kOutputs / 2, kOutputs);
    }
    Finish(op, output)(sums, block.residual, block.out, block.count);
  }
};

}  // namespace
}  // namespace maxq
