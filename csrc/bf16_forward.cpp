// The forward passes in bfloat16: specialisations of the drivers' entry points, declared in bf16_forward.h.
//
// A few samples are computed by kernels that read the weight as it is, since reading it is what takes the time. More of
// them, the pixels of 1x1 convolutions, and images that are feature-major (bf16_conv.h) are packed as bfloat16 where the
// processor multiplies it (bf16_dot-inl.h).
// Else the float drivers compute, on scratch memory: weight and bias are widened once for a call; activations strip by
// strip (linear), which is what packing would do to them anyway, or some images at a time (convolutions). What a piece
// needs stays in a near cache where the layer allows it. Sums are floats throughout, rounded once.
#include "bf16_forward.h"

#include <algorithm>
#include <type_traits>

#include "bf16_conv.h"
#include "bsr_product.h"
#include "csr_small.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"
#include "strips.h"

namespace lth {
namespace {

constexpr int64_t kMoveCost = 8;          // of a value that is widened or packed, in multiply-adds
constexpr int64_t kImageBytes = 2 << 20;  // of a piece's images, in floats, for each thread
constexpr int64_t kRowCost = 4;           // a row's own cost, in non-zeros: loading and storing its accumulators
constexpr int64_t kDotLanes = 32;         // of bfloat16 in a register
constexpr int64_t kLeastPixels = 24;      // of an image that fill such registers well enough

int threads_for(int threads, int64_t values) {
  return useful_threads(threads, static_cast<double>(kMoveCost * values));
}

void widen(const Bf16* from, int64_t count, float* to) {
  bf16_kernels().widen_runs(from, count, 1, count, to, count, count);
}

// Values and bias of a layer as floats.
struct Widened {
  int64_t values_count, bias_count;
  size_t values_at, bias_at;

  Widened(Plan& plan, int64_t values, int64_t bias)
      : values_count(values), bias_count(bias), values_at(plan.add<float>(values)), bias_at(plan.add<float>(bias)) {}

  const float* values(const Scratch& scratch) const { return scratch.at<float>(values_at); }
  const float* bias(const Scratch& scratch) const { return bias_count == 0 ? nullptr : scratch.at<float>(bias_at); }
  void fill(const Scratch& scratch, const Bf16* values, const Bf16* bias, int threads) const {
    parallel(threads_for(threads, values_count), [&](int thread, int team) {
      const Range mine = share(values_count, thread, team);
      widen(values + mine.begin, mine.end - mine.begin, scratch.at<float>(values_at) + mine.begin);
    });
    if (bias_count > 0) widen(bias, bias_count, scratch.at<float>(bias_at));
  }
};

// A linear layer of `stored` values, strip by strip: product(samples, values, bias, x, y) computes y [rows][samples]
// from x [cols][samples].
template <class Product>
void linear_by_strips(const LinearSizes& sizes, const Bf16* x, Strides xs, const Bf16* values, int64_t stored,
                      const Bf16* bias, Bf16* y, Strides ys, int threads, Product&& product) {
  const Kernels<float>& k = kernels<float>();
  const Tiling t(sizes.batch, k.lanes, k.spmm_tile);
  Plan plan;
  const Widened weight(plan, stored, bias == nullptr ? 0 : sizes.rows);
  const size_t x_at = plan.add<float>(sizes.cols * t.lanes);
  const size_t y_at = plan.add<float>(sizes.rows * t.lanes);
  const Scratch scratch(plan);
  float* const in = scratch.at<float>(x_at);
  float* const out = scratch.at<float>(y_at);
  weight.fill(scratch, values, bias, threads);
  for (int64_t strip = 0; strip < t.strips; ++strip) {
    parallel(threads_for(threads, sizes.cols * t.lanes), [&](int thread, int team) {
      pack_share(k, x, xs, sizes.batch, t, strip, 1, sizes.cols, in, thread, team);
    });
    product(t.lanes, weight.values(scratch), weight.bias(scratch), in, out);
    parallel(threads_for(threads, sizes.rows * t.lanes), [&](int thread, int team) {
      const Range chunks = share(ceil_div(sizes.rows, kChunk), thread, team);
      for (int64_t r = chunks.begin * kChunk; r < std::min(sizes.rows, chunks.end * kChunk); r += kChunk) {
        unpack(k, out + r * t.lanes, std::min(kChunk, sizes.rows - r), y, ys, sizes.batch, t, strip, r);
      }
    });
  }
}

template <class Index>
Bf16Kernels::Dot<Index> dot_of(int64_t tile) {
  if constexpr (std::is_same_v<Index, uint16_t>)
    return bf16_kernels().dot_u16[tile];
  else
    return bf16_kernels().dot_i32[tile];
}

// The rows of a weight in groups of `height`, of which group b has entries [pointers[b], pointers[b + 1]).
struct Groups {
  int64_t height, cost;  // its own cost, in entries
  const int32_t* pointers;
};

// A linear layer on strips of bfloat16, multiplied as such; as csr_linear.cpp does it for floats. All threads call
// prepare(thread, team) first; compute(strip, b, count, out) multiplies a strip [padded_cols][t.lanes] into the rows of
// `count` groups from b on.
template <class Prepare, class Compute>
void dot_by_strips(const LinearSizes& sizes, const Bf16* x, Strides xs, int64_t padded_cols, const Groups& g, Bf16* y,
                   Strides ys, const Tiling& t, bool relu, int threads, Prepare&& prepare, Compute&& compute) {
  const Kernels<float>& k = kernels<float>();
  const int64_t groups = ceil_div(sizes.rows, g.height), weight = g.pointers[groups] + g.cost * groups;
  const int64_t chunk = std::max<int64_t>(1, kChunk / g.height), out_size = chunk * g.height * t.lanes;
  const int64_t round = strips_per_round(t, padded_cols, sizeof(Bf16), threads);
  const bool read_x = padded_cols == sizes.cols && is_strip(sizes.batch, xs, t.lanes);

  Plan plan;
  const size_t packed_at = plan.add<Bf16>(read_x ? 0 : round * padded_cols * t.lanes);
  const size_t out_at = plan.add<float>(out_size, threads);
  const Scratch scratch(plan);
  Bf16* const packed = scratch.at<Bf16>(packed_at);

  parallel(threads, [&](int thread, int team) {
    float* const out = scratch.at<float>(out_at, out_size, thread);
    prepare(thread, team);
    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0) barrier(team);
      if (!read_x) pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed, thread, team, padded_cols);
      barrier(team);
      const Range mine = share(strips * weight, thread, team);
      for (int64_t strip = mine.begin / weight; strip * weight < mine.end; ++strip) {
        const auto cut = [&](int64_t at) {
          return row_at(g.pointers, groups, g.cost, std::min(at - strip * weight, weight));
        };
        const int64_t stop = cut(mine.end);
        for (int64_t b = mine.begin <= strip * weight ? 0 : cut(mine.begin); b < stop; b += chunk) {
          const int64_t count = std::min(chunk, stop - b), row = b * g.height;
          compute((read_x ? x : packed) + strip * padded_cols * t.lanes, b, count, out);
          if (relu) apply_relu(out, count * g.height * t.lanes);
          unpack(k, out, std::min(sizes.rows, row + count * g.height) - row, y, ys, sizes.batch, t, first + strip, row);
        }
      }
    }
  });
}

Tiling dot_tiling(int64_t batch) { return Tiling(batch, kDotLanes, bf16_kernels().dot_tile); }

int dot_threads(int threads, int64_t values, int64_t rows, const Tiling& t) {
  const double work = static_cast<double>(values + kRowCost * rows);
  return useful_threads(threads, work * static_cast<double>(t.lanes * t.strips));
}

template <class Index>
void csr_dot_forward(const LinearSizes& sizes, const Bf16* x, Strides xs, const Bf16* values, const Bf16* bias, Bf16* y,
                     Strides ys, const int32_t* crow, const Index* col, bool relu, int threads) {
  const Tiling t = dot_tiling(sizes.batch);
  const auto dot = dot_of<Index>(t.tile);
  threads = dot_threads(threads, crow[sizes.rows], sizes.rows, t);
  dot_by_strips(
      sizes, x, xs, sizes.cols, {1, kRowCost, crow}, y, ys, t, relu, threads, [](int, int) {},
      [&](const Bf16* strip, int64_t r, int64_t count, float* out) {
        const Bf16* const b = bias == nullptr ? nullptr : bias + r;
        dot({strip, col, t.lanes, values, crow + r, crow + r + 1, count, b, out, t.lanes});
      });
}

// For blocks of an even number of columns.
void bsr_dot_forward(const LinearSizes& sizes, const Bf16* x, Strides xs, const BsrWeight<Bf16>& w, const Bf16* bias,
                     Bf16* y, Strides ys, bool relu, int threads) {
  const Tiling t = dot_tiling(sizes.batch);
  const auto dot = bf16_kernels().bsr_dot[t.tile];
  const int64_t block_rows = ceil_div(sizes.rows, w.r), stored = w.crow[block_rows] * w.r * w.c;
  threads = dot_threads(threads, stored, sizes.rows, t);
  Plan plan;
  const size_t masked_at = plan.add<Bf16>(w.mask != nullptr ? stored : 0);
  const size_t bias_at = plan.add<Bf16>(bias != nullptr ? block_rows * w.r : 0);
  const Scratch scratch(plan);
  Bf16* const masked = scratch.at<Bf16>(masked_at);
  Bf16* const padded = scratch.at<Bf16>(bias_at);
  if (bias != nullptr) std::fill(std::copy(bias, bias + sizes.rows, padded), padded + block_rows * w.r, Bf16(0));
  dot_by_strips(
      sizes, x, xs, round_up(sizes.cols, w.c), {w.r, ceil_div(kRowCost, w.c), w.crow}, y, ys, t, relu, threads,
      [&](int thread, int team) {
        if (w.mask != nullptr) mask_share(w.values, w.mask, stored, masked, thread, team);
      },
      [&](const Bf16* strip, int64_t b, int64_t count, float* out) {
        dot({strip, w.col, w.mask != nullptr ? masked : w.values, w.r, w.c, w.crow + b, w.crow + b + 1, count,
             bias == nullptr ? nullptr : padded + b * w.r, out});
      });
}

template <class Index>
void csr_linear(const LinearSizes& sizes, const Bf16* x, Strides xs, const Bf16* values, const Bf16* bias, Bf16* y,
                Strides ys, const int32_t* crow, const Index* col, bool relu, int threads) {
  if (sizes.batch == 0 || sizes.rows == 0) return;
  if (takes_few<float>(sizes.batch)) {
    return csr_few_forward<Bf16, Index>(sizes, x, xs, values, bias, y, ys, crow, col, relu, threads);
  }
  if (bf16_kernels().dot_tile > 0) return csr_dot_forward(sizes, x, xs, values, bias, y, ys, crow, col, relu, threads);
  linear_by_strips(sizes, x, xs, values, crow[sizes.rows], bias, y, ys, threads,
                   [&](int64_t samples, const float* v, const float* b, const float* in, float* out) {
                     csr_linear_forward<float, Index>({samples, sizes.rows, sizes.cols}, in, {1, samples}, v, b, out,
                                                      {1, samples}, crow, col, relu, threads);
                   });
}

// Elements [first, first + images) of each of the runs of an activation with `pixels` elements for an image, to or from
// a piece of its own: runs of images where it is feature-major, else one run of whole images.
struct Piece {
  int64_t first, images, n, pixels;
  bool feature_major;

  template <class From, class To, class Copy>
  void move(const From* src, int64_t src_first, int64_t src_n, To* dst, int64_t dst_first, int64_t dst_n, int threads,
            Copy&& copy_runs) const {
    parallel(threads_for(threads, images * pixels), [&](int thread, int team) {
      const Range mine = share(feature_major ? pixels : images * pixels, thread, team);
      const int64_t count = mine.end - mine.begin;
      if (feature_major)
        copy_runs(src + mine.begin * src_n + src_first, src_n, count, images, dst + mine.begin * dst_n + dst_first,
                  dst_n, images);
      else
        copy_runs(src + src_first * pixels + mine.begin, count, 1, count, dst + dst_first * pixels + mine.begin, count,
                  count);
    });
  }
  void widen(const Bf16* x, float* to, int threads) const {
    move(x, first, n, to, 0, images, threads, bf16_kernels().widen_runs);
  }
  void narrow(const float* from, Bf16* y, int threads) const {
    move(from, 0, images, y, first, n, threads, bf16_kernels().narrow_runs);
  }
};

// A convolution with a weight of `stored` values, some images at a time: product(sizes, values, bias, x, y).
template <class Product>
void conv_by_images(const ConvSizes& s, const Bf16* x, const Bf16* values, int64_t stored, const Bf16* bias, Bf16* y,
                    int threads, Product&& product) {
  const int64_t in_pixels = s.channels * s.height * s.width, out_pixels = s.out_channels * s.out_h * s.out_w;
  const int64_t lanes = kernels<float>().lanes;
  const int64_t image_bytes = (in_pixels + out_pixels) * static_cast<int64_t>(sizeof(float));
  const int64_t fit = kImageBytes * threads / std::max<int64_t>(1, image_bytes);
  const int64_t piece = std::min(s.n, round_up(std::max<int64_t>(1, fit), lanes));
  Plan plan;
  const Widened weight(plan, stored, bias == nullptr ? 0 : s.out_channels);
  const size_t x_at = plan.add<float>(piece * in_pixels);
  const size_t y_at = plan.add<float>(piece * out_pixels);
  const Scratch scratch(plan);
  float* const in = scratch.at<float>(x_at);
  float* const out = scratch.at<float>(y_at);
  weight.fill(scratch, values, bias, threads);
  for (int64_t first = 0; first < s.n; first += piece) {
    ConvSizes here = s;
    here.n = std::min(piece, s.n - first);
    here.feature_major = s.feature_major && here.n > 1;  // of one image both formats are the same
    Piece{first, here.n, s.n, in_pixels, s.feature_major}.widen(x, in, threads);
    product(here, weight.values(scratch), weight.bias(scratch), in, out);
    Piece{first, here.n, s.n, out_pixels, s.feature_major}.narrow(out, y, threads);
  }
}

// Whether a convolution is a linear layer whose samples are pixels.
bool is_pointwise(const ConvSizes& s) {
  return s.kernel_h * s.kernel_w * s.stride_h * s.stride_w * s.groups == 1 && s.pad_h + s.pad_w == 0;
}

template <class Index>
void csr_conv2d(const ConvSizes& s, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y, const int32_t* crow,
                const Index* col, bool relu, int threads) {
  const int64_t pixels = s.height * s.width * (s.feature_major ? s.n : 1), images = s.feature_major ? 1 : s.n;
  if (is_pointwise(s) && pixels >= kLeastPixels && s.out_channels > 0 && bf16_kernels().dot_tile > 0) {
    for (int64_t i = 0; i < images; ++i) {
      csr_dot_forward({pixels, s.out_channels, s.channels}, x + i * s.channels * pixels, {1, pixels}, values, bias,
                      y + i * s.out_channels * pixels, {1, pixels}, crow, col, relu, threads);
    }
    return;
  }
  if (takes_conv_dot(s)) return csr_conv2d_dot(s, x, values, bias, y, crow, col, relu, threads);
  conv_by_images(s, x, values, crow[s.out_channels], bias, y, threads,
                 [&](const ConvSizes& here, const float* v, const float* b, const float* in, float* out) {
                   csr_conv2d_forward<float, Index>(here, in, v, b, out, crow, col, relu, threads);
                 });
}

BsrWeight<float> with_values(const BsrWeight<Bf16>& w, const float* values) {
  return {w.r, w.c, values, w.mask, w.crow, w.col, w.ccol, w.row, w.perm};
}

}  // namespace

template <>
void csr_linear_forward<Bf16, uint16_t>(const LinearSizes& sizes, const Bf16* x, Strides xs, const Bf16* values,
                                        const Bf16* bias, Bf16* y, Strides ys, const int32_t* crow,
                                        const uint16_t* col, bool relu, int threads) {
  csr_linear(sizes, x, xs, values, bias, y, ys, crow, col, relu, threads);
}

template <>
void csr_linear_forward<Bf16, int32_t>(const LinearSizes& sizes, const Bf16* x, Strides xs, const Bf16* values,
                                       const Bf16* bias, Bf16* y, Strides ys, const int32_t* crow, const int32_t* col,
                                       bool relu, int threads) {
  csr_linear(sizes, x, xs, values, bias, y, ys, crow, col, relu, threads);
}

template <>
void bsr_linear_forward<Bf16>(const LinearSizes& sizes, const Bf16* x, Strides xs, const BsrWeight<Bf16>& w,
                              const Bf16* bias, Bf16* y, Strides ys, bool relu, int threads) {
  if (sizes.batch == 0 || sizes.rows == 0) return;
  if (bsr_takes_few(sizes.batch, w.r, w.c)) return bsr_few_forward(sizes, x, xs, w, bias, y, ys, relu, threads);
  if (bf16_kernels().dot_tile > 0 && w.c % 2 == 0) return bsr_dot_forward(sizes, x, xs, w, bias, y, ys, relu, threads);
  const int64_t stored = w.crow[ceil_div(sizes.rows, w.r)] * w.r * w.c;
  linear_by_strips(sizes, x, xs, w.values, stored, bias, y, ys, threads,
                   [&](int64_t samples, const float* v, const float* b, const float* in, float* out) {
                     bsr_linear_forward<float>({samples, sizes.rows, sizes.cols}, in, {1, samples}, with_values(w, v),
                                               b, out, {1, samples}, relu, threads);
                   });
}

template <>
void csr_conv2d_forward<Bf16, uint16_t>(const ConvSizes& s, const Bf16* x, const Bf16* values, const Bf16* bias,
                                        Bf16* y, const int32_t* crow, const uint16_t* col, bool relu, int threads) {
  csr_conv2d(s, x, values, bias, y, crow, col, relu, threads);
}

template <>
void csr_conv2d_forward<Bf16, int32_t>(const ConvSizes& s, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y,
                                       const int32_t* crow, const int32_t* col, bool relu, int threads) {
  csr_conv2d(s, x, values, bias, y, crow, col, relu, threads);
}

template <>
void bsr_conv2d_forward<Bf16>(const ConvSizes& s, const Bf16* x, const BsrWeight<Bf16>& w, const Bf16* bias, Bf16* y,
                              bool relu, int threads) {
  const int64_t stored = w.crow[ceil_div(s.out_channels, w.r)] * w.r * w.c;
  conv_by_images(s, x, w.values, stored, bias, y, threads,
                 [&](const ConvSizes& here, const float* v, const float* b, const float* in, float* out) {
                   bsr_conv2d_forward<float>(here, in, with_values(w, v), b, out, relu, threads);
                 });
}

}  // namespace lth
