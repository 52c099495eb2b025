// What moves activations without multiplying them: into and out of the planar layout, pooling,
// sums, upsampling. Plain loops, which compilers turn into vectors.
//
// An item is kMoved channels of an image.
#pragma once

#include <cstring>

#include "runtime.h"

namespace maxq {
namespace {

constexpr int64_t kMoved = 16;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

float* plane(const View& view, const Run& run, int64_t image, int64_t channel) {
  return run.arena + view.offset + image * view.image + channel * view.channel;
}

// The gap behind a channel, from where whole vectors end.
void clear_gap(const View& view, const Run& run, int64_t image, int64_t channel, int64_t lanes) {
  const int64_t used = round_up(view.h * view.pitch, lanes);
  std::memset(plane(view, run, image, channel) + used, 0, (view.channel - used) * sizeof(float));
}

void clear_front(const View& view, const Run& run) {
  std::memset(run.arena + view.offset - view.front, 0, view.front * sizeof(float));
}

struct Channels {
  int64_t image, begin, end;
  Channels(const View& view, int64_t item) {
    const int64_t groups = (view.c + kMoved - 1) / kMoved;
    image = item / groups;
    begin = item % groups * kMoved;
    end = begin + kMoved < view.c ? begin + kMoved : view.c;
  }
};

void import_planes(const Op& op, const Run& run, const Channels& channels) {
  const View& out = op.out;
  const int64_t* s = op.strides;
  const float* from = run.externals[op.external] + channels.image * s[0] + channels.begin * s[1];
  for (int64_t y = 0; y < out.h; ++y) {
    float* to = plane(out, run, channels.image, channels.begin) + y * out.pitch;
    if (s[3] == 1) {
      for (int64_t c = 0; c < channels.end - channels.begin; ++c)
        std::memcpy(to + c * out.channel, from + c * s[1] + y * s[2], out.w * sizeof(float));
    } else {
      for (int64_t x = 0; x < out.w; ++x)
        for (int64_t c = 0; c < channels.end - channels.begin; ++c)
          to[c * out.channel + x] = from[c * s[1] + y * s[2] + x * s[3]];
    }
  }
}

void export_planes(const Op& op, const Run& run, const Channels& channels) {
  const View& in = op.in;
  const int64_t* s = op.strides;
  float* to = run.externals[op.external] + channels.image * s[0] + channels.begin * s[1];
  for (int64_t y = 0; y < in.h; ++y) {
    const float* from = plane(in, run, channels.image, channels.begin) + y * in.pitch;
    if (s[3] == 1) {
      for (int64_t c = 0; c < channels.end - channels.begin; ++c)
        std::memcpy(to + c * s[1] + y * s[2], from + c * in.channel, in.w * sizeof(float));
    } else {
      for (int64_t x = 0; x < in.w; ++x)
        for (int64_t c = 0; c < channels.end - channels.begin; ++c)
          to[c * s[1] + y * s[2] + x * s[3]] = from[c * in.channel + x];
    }
  }
}

// Floats of a row with its padding, and what a window at its end reads.
int64_t move_line(int64_t width, int64_t padding, int64_t kernel) {
  return width + 2 * padding + kernel;
}

// NaN wins, as in torch.
inline float larger(float a, float b) { return a > b || a != a ? a : b; }

// Maximum over the rows of a window, then over its columns. line: padding, a row, padding.
void pool_plane(const Op& op, const float* from, float* to, float* line) {
  const View &in = op.in, &out = op.out;
  const int64_t left = op.padding[1], wide = move_line(in.w, left, op.kernel[1]);
  float* most = line + wide;
  const float least = -__builtin_inff();
  for (int64_t x = 0; x < wide; ++x) line[x] = least;
  for (int64_t y = 0; y < out.h; ++y) {
    const int64_t top = y * op.stride[0] - op.padding[0];
    const int64_t begin = top < 0 ? 0 : top;
    const int64_t end = top + op.kernel[0] < in.h ? top + op.kernel[0] : in.h;
    for (int64_t x = 0; x < in.w; ++x) line[left + x] = least;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t x = 0; x < in.w; ++x)
        line[left + x] = larger(from[row * in.pitch + x], line[left + x]);
    const int64_t used = (out.w - 1) * op.stride[1] + 1;
    for (int64_t x = 0; x < used; ++x) most[x] = line[x];
    for (int64_t k = 1; k < op.kernel[1]; ++k)
      for (int64_t x = 0; x < used; ++x) most[x] = larger(line[x + k], most[x]);
    for (int64_t x = 0; x < out.w; ++x) to[y * out.pitch + x] = most[x * op.stride[1]];
  }
}

void add_plane(const Op& op, const float* a, const float* b, float* to) {
  const View& out = op.out;
  for (int64_t y = 0; y < out.h; ++y, a += op.in.pitch, b += op.other.pitch, to += out.pitch)
    for (int64_t x = 0; x < out.w; ++x) {
      const float sum = a[x] + (op.other.pitch ? b[x] : 0.f);
      to[x] = op.relu && sum < 0 ? 0.f : sum;
    }
}

// Nearest pixels of a smaller map, added to another if there is one.
void upsample_plane(const Op& op, const float* small, const float* b, float* to, int32_t* at) {
  const View &in = op.in, &out = op.out;
  const float scale_y = static_cast<float>(in.h) / out.h, scale_x = static_cast<float>(in.w) / out.w;
  for (int64_t x = 0; x < out.w; ++x) {
    const int64_t near = static_cast<int64_t>(x * scale_x);
    at[x] = static_cast<int32_t>(near < in.w ? near : in.w - 1);
  }
  for (int64_t y = 0; y < out.h; ++y, b += op.other.pitch, to += out.pitch) {
    const int64_t near = static_cast<int64_t>(y * scale_y);
    const float* row = small + (near < in.h ? near : in.h - 1) * in.pitch;
    if (op.other.pitch)
      for (int64_t x = 0; x < out.w; ++x) to[x] = b[x] + row[at[x]];
    else
      for (int64_t x = 0; x < out.w; ++x) to[x] = row[at[x]];
  }
}

int64_t move_items(const Op& op) {
  const View& view = op.kind == kExport ? op.in : op.out;
  return view.n * ((view.c + kMoved - 1) / kMoved);
}

int64_t move_scratch(const Op& op) {
  if (op.kind == kUpsample) return op.out.w;
  return op.kind == kMaxPool ? 2 * move_line(op.in.w, op.padding[1], op.kernel[1]) : 0;
}

void move_item(const Op& op, const Run& run, int64_t item, float* scratch) {
  const Channels channels(op.kind == kExport ? op.in : op.out, item);
  if (op.kind == kExport) return export_planes(op, run, channels);
  if (op.kind == kImport) import_planes(op, run, channels);
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    float* to = plane(op.out, run, channels.image, c);
    const float* from = plane(op.in, run, channels.image, c);
    const float* other = plane(op.other, run, channels.image, c);
    if (op.kind == kMaxPool) pool_plane(op, from, to, scratch);
    if (op.kind == kAdd) add_plane(op, from, other, to);
    if (op.kind == kUpsample)
      upsample_plane(op, from, other, to, reinterpret_cast<int32_t*>(scratch));
    for (int64_t y = 0; y < op.out.h; ++y)
      std::memset(to + y * op.out.pitch + op.out.w, 0, (op.out.pitch - op.out.w) * sizeof(float));
    clear_gap(op.out, run, channels.image, c, 1);
  }
  if (item == 0) clear_front(op.out, run);
}

}  // namespace
}  // namespace maxq
