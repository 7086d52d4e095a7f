// See bf16_conv.h. For each block of images threads share the channels to pack, wait for each other, and share the rows
// of the output; a finished row, floats so far, is rounded into its place.
#include "bf16_conv.h"

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "parallel.h"
#include "scratch.h"
#include "strips.h"

namespace lth {
namespace {

constexpr int64_t kImages = 32;        // lanes of a register of bfloat16
constexpr int64_t kRowPixels = 16;     // of y that are written together where the images of a pixel lie apart
constexpr int64_t kSpread = 4096;      // bytes: multiples of it would put all channels into few sets of a cache

struct Planes {
  int64_t width, pixels;  // of a packed channel
  int64_t out_rows;       // rows of the output that are finished together

  explicit Planes(const ConvSizes& s) : width(s.width + 2 * s.pad_w), pixels((s.height + 2 * s.pad_h) * width) {
    if (pixels * kImages * static_cast<int64_t>(sizeof(Bf16)) % kSpread == 0) ++pixels;
    out_rows = s.feature_major ? 1 : std::min(s.out_h, ceil_div(kRowPixels, s.out_w));
  }
};

// Channel c of images [first, first + live), with its border.
void pack_channel(const ConvSizes& s, const Planes& p, const Bf16* x, int64_t first, int64_t live, int64_t c, Bf16* to) {
  const Bf16Kernels& k = bf16_kernels();
  const auto clear = [](Bf16* at, int64_t pixels) {
    std::fill(at, at + pixels * kImages, Bf16(0));
  };
  clear(to, s.pad_h * p.width);
  clear(to + (s.pad_h + s.height) * p.width * kImages, p.pixels - (s.pad_h + s.height) * p.width);
  for (int64_t row = 0; row < s.height; ++row) {
    Bf16* const line = to + (s.pad_h + row) * p.width * kImages;
    clear(line, s.pad_w);
    clear(line + (s.pad_w + s.width) * kImages, s.pad_w);
    Bf16* const pixels = line + s.pad_w * kImages;
    if (s.feature_major) {
      k.copy_runs(x + (c * s.height + row) * s.width * s.n + first, s.n, s.width, live, pixels, kImages, kImages);
    } else {
      const int64_t image = s.channels * s.height * s.width;
      k.transpose(x + first * image + (c * s.height + row) * s.width, image, live, s.width, pixels, kImages, kImages);
    }
  }
}

// `rows` rows of the output from `top` on, out [channel][pixel][image], to their place in y.
void unpack_rows(const ConvSizes& s, const float* out, int64_t pitch, int64_t top, int64_t rows, int64_t first,
                 int64_t live, Bf16* y) {
  const Bf16Kernels& k = bf16_kernels();
  const int64_t pixels = rows * s.out_w, channel = s.out_h * s.out_w, image = s.out_channels * channel;
  for (int64_t o = 0; o < s.out_channels; ++o, out += pitch) {
    const int64_t at = o * channel + top * s.out_w;
    if (s.feature_major)
      k.narrow_runs(out, kImages, pixels, live, y + at * s.n + first, s.n, live);
    else
      k.narrow_transpose(out, kImages, pixels, live, y + first * image + at, image, pixels);
  }
}

}  // namespace

bool takes_conv_dot(const ConvSizes& s) {
  const int64_t pixels = s.channels * Planes(s).pixels;
  return bf16_kernels().dot_tile > 1 && 3 * round_up(s.n, kImages) <= 4 * s.n &&
         pixels <= std::numeric_limits<int32_t>::max();
}

template <class Index>
void csr_conv2d_dot(const ConvSizes& s, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y,
                    const int32_t* crow, const Index* col, int threads) {
  const Planes p(s);
  const int64_t nnz = crow[s.out_channels], taps = s.kernel_h * s.kernel_w;
  const int64_t group_channels = s.channels / s.groups, group_rows = s.out_channels / s.groups;
  const int64_t pitch = p.out_rows * s.out_w * kImages, steps = ceil_div(s.out_h, p.out_rows);
  const double work = static_cast<double>(nnz + s.out_channels) * static_cast<double>(s.n * s.out_h * s.out_w);
  threads = useful_threads(threads, work);
  const auto& dot = bf16_kernels().dot_i32;

  Plan plan;
  const size_t packed_at = plan.add<Bf16>(s.channels * p.pixels * kImages);
  const size_t offset_at = plan.add<int32_t>(nnz);
  const size_t out_at = plan.add<float>(s.out_channels * pitch, threads);
  const Scratch scratch(plan);
  Bf16* const packed = scratch.at<Bf16>(packed_at);
  int32_t* const offset = scratch.at<int32_t>(offset_at);

  parallel(threads, [&](int thread, int team) {
    const Range listed = share(s.out_channels, thread, team);
    for (int64_t o = listed.begin; o < listed.end; ++o) {
      const int64_t base = o / group_rows * group_channels;
      for (int64_t k = crow[o]; k < crow[o + 1]; ++k) {
        const int64_t c = col[k] / taps, tap = col[k] % taps;
        const int64_t row = tap / s.kernel_w * s.dilation_h, column = tap % s.kernel_w * s.dilation_w;
        offset[k] = static_cast<int32_t>((base + c) * p.pixels + row * p.width + column);
      }
    }
    float* const out = scratch.at<float>(out_at, s.out_channels * pitch, thread);
    for (int64_t first = 0; first < s.n; first += kImages) {
      const int64_t live = std::min(kImages, s.n - first);
      if (first > 0) barrier(team);
      const Range channels = share(s.channels, thread, team);
      for (int64_t c = channels.begin; c < channels.end; ++c)
        pack_channel(s, p, x, first, live, c, packed + c * p.pixels * kImages);
      barrier(team);
      const Range mine = share(steps, thread, team);
      for (int64_t step = mine.begin; step < mine.end; ++step) {
        const int64_t top = step * p.out_rows, rows = std::min(p.out_rows, s.out_h - top);
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t column = 0; column < s.out_w;) {
            const int64_t tile = s.stride_w == 1 && column + 1 < s.out_w ? 2 : 1;
            const int64_t pixel = (top + row) * s.stride_h * p.width + column * s.stride_w;
            dot[tile]({packed + pixel * kImages, offset, kImages, values, crow, crow + 1, s.out_channels, bias,
                       out + (row * s.out_w + column) * kImages, pitch});
            column += tile;
          }
        }
        unpack_rows(s, out, pitch, top, rows, first, live, y);
      }
    }
  });
}

template void csr_conv2d_dot<uint16_t>(const ConvSizes&, const Bf16*, const Bf16*, const Bf16*, Bf16*, const int32_t*,
                                       const uint16_t*, int);
template void csr_conv2d_dot<int32_t>(const ConvSizes&, const Bf16*, const Bf16*, const Bf16*, Bf16*, const int32_t*,
                                      const int32_t*, int);

}  // namespace lth
