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

constexpr int64_t kImages = 32;  // lanes of a register of bfloat16

struct Planes {
  int64_t width, pixels;  // of a packed channel; an odd number, so that channels spread over all sets of a cache

  explicit Planes(const ConvSizes& s) : width(s.width + 2 * s.pad_w), pixels((s.height + 2 * s.pad_h) * width) {
    pixels |= 1;
  }
};

// Channel c of images [first, first + live), with its border.
void pack_channel(const ConvSizes& s, const Planes& p, const Bf16* x, int64_t first, int64_t live, int64_t c,
                  Bf16* to) {
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
    k.copy_runs(x + (c * s.height + row) * s.width * s.n + first, s.n, s.width, live, line + s.pad_w * kImages, kImages,
                kImages);
  }
}

}  // namespace

bool takes_conv_dot(const ConvSizes& s) {
  const int64_t pixels = s.channels * Planes(s).pixels;
  return s.feature_major && bf16_kernels().dot_tile > 1 && 3 * round_up(s.n, kImages) <= 4 * s.n &&
         pixels <= std::numeric_limits<int32_t>::max();
}

template <class Index>
void csr_conv2d_dot(const ConvSizes& s, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y,
                    const int32_t* crow, const Index* col, bool relu, int threads) {
  const Planes p(s);
  const int64_t nnz = crow[s.out_channels], taps = s.kernel_h * s.kernel_w;
  const int64_t group_channels = s.channels / s.groups, group_rows = s.out_channels / s.groups;
  const int64_t pitch = s.out_w * kImages;
  const double work = static_cast<double>(nnz + s.out_channels) * static_cast<double>(s.n * s.out_h * s.out_w);
  threads = useful_threads(threads, work);
  const Bf16Kernels& k = bf16_kernels();
  const auto& dot = k.dot_i32;

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
      for (int64_t i = crow[o]; i < crow[o + 1]; ++i) {
        const int64_t c = col[i] / taps, tap = col[i] % taps;
        const int64_t row = tap / s.kernel_w * s.dilation_h, column = tap % s.kernel_w * s.dilation_w;
        offset[i] = static_cast<int32_t>((base + c) * p.pixels + row * p.width + column);
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
      const Range rows = share(s.out_h, thread, team);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        for (int64_t column = 0; column < s.out_w;) {
          const int64_t tile = s.stride_w == 1 && column + 1 < s.out_w ? 2 : 1;
          const int64_t pixel = row * s.stride_h * p.width + column * s.stride_w;
          dot[tile]({packed + pixel * kImages, offset, kImages, values, crow, crow + 1, s.out_channels, bias,
                     out + column * kImages, pitch});
          column += tile;
        }
        if (relu) apply_relu(out, s.out_channels * pitch);
        for (int64_t o = 0; o < s.out_channels; ++o) {
          Bf16* const to = y + (o * s.out_h + row) * s.out_w * s.n + first;
          k.narrow_runs(out + o * pitch, kImages, s.out_w, live, to, s.n, live);
        }
      }
    }
  });
}

template void csr_conv2d_dot<uint16_t>(const ConvSizes&, const Bf16*, const Bf16*, const Bf16*, Bf16*, const int32_t*,
                                       const uint16_t*, bool, int);
template void csr_conv2d_dot<int32_t>(const ConvSizes&, const Bf16*, const Bf16*, const Bf16*, Bf16*, const int32_t*,
                                      const int32_t*, bool, int);

}  // namespace lth
