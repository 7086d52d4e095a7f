// csr_conv2d_forward and csr_conv2d_backward over kernels, strides, paddings, dilations, groups and image counts that
// leave strips partly empty, blocks and bands with remainders, and outputs or taps that are nothing but border.
#include "csr_conv.h"

#include "harness.h"
#include "kernels.h"

namespace lth {
namespace test {
namespace {

struct Case {
  int64_t n, channels, height, width, out_channels, groups, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
      dilation_h, dilation_w;
  double density;

  ConvSizes sizes() const {
    const auto out = [](int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
      const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1;
      return span < 0 ? 0 : span / stride + 1;
    };
    return {n,
            channels,
            height,
            width,
            out_channels,
            groups,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            out(height, kernel_h, stride_h, pad_h, dilation_h),
            out(width, kernel_w, stride_w, pad_w, dilation_w)};
  }
};

const Case kCases[] = {
    // n  C  H  W  O  g   kernel  stride   pad   dilation density
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1},
    {2, 3, 5, 7, 4, 1, 3, 3, 1, 1, 1, 1, 1, 1, .5},
    {3, 4, 6, 5, 6, 2, 3, 2, 1, 1, 0, 1, 1, 1, .4},
    {5, 3, 8, 9, 5, 1, 3, 3, 2, 2, 1, 1, 1, 1, .3},
    {4, 2, 9, 11, 3, 1, 5, 3, 3, 2, 2, 1, 1, 2, .5},
    {9, 5, 4, 4, 7, 1, 3, 3, 1, 1, 1, 1, 1, 1, .2},
    {17, 3, 3, 3, 4, 1, 1, 1, 1, 1, 0, 0, 1, 1, .5},
    {3, 6, 14, 14, 8, 1, 1, 1, 1, 1, 0, 0, 1, 1, .3},
    {2, 4, 7, 7, 6, 1, 1, 1, 2, 2, 0, 0, 1, 1, .5},
    {2, 2, 4, 5, 3, 1, 2, 2, 3, 3, 0, 0, 1, 1, 1},   // pixels that no tap reads
    {1, 2, 3, 3, 2, 1, 3, 3, 1, 1, 3, 3, 1, 1, .6},  // outputs that see only border
    {2, 2, 2, 2, 3, 1, 5, 5, 1, 1, 2, 2, 2, 2, .6},  // taps that see only border
    {2, 2, 5, 1, 3, 1, 3, 1, 1, 1, 1, 0, 1, 1, .7},
    {2, 3, 1, 40, 4, 1, 1, 5, 1, 1, 0, 2, 1, 1, .4},
    {3, 2, 4, 5, 3, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0},
    {0, 2, 4, 5, 3, 1, 3, 3, 1, 1, 1, 1, 1, 1, .5},
    {2, 2, 2, 2, 3, 1, 3, 3, 1, 1, 0, 0, 1, 1, .5},  // no output
    {2, 0, 4, 4, 3, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1},
    {1, 8, 6, 6, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, .8},   // depthwise
    {2, 200, 4, 4, 9, 1, 3, 3, 1, 1, 1, 1, 1, 1, .3},  // blocks of the reduction
    {2, 9, 4, 4, 200, 1, 3, 3, 1, 1, 1, 1, 1, 1, .3},
    {16, 24, 40, 17, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1, .03},  // several bands
    {1, 240, 5, 2, 160, 1, 2, 2, 1, 1, 0, 0, 1, 1, .5},   // non-zeros placed and sorted by all threads for all
    {2, 70, 30, 30, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1, .02},   // offsets beyond 16 bits where a pixel is the unit
};

template <class T>
struct Truth {
  std::vector<Sum> y, dx, dw, db;
};

template <class T, class Index>
Truth<T> truth(const ConvSizes& s, const Csr<Index>& w, const Array<T>& x, const Array<T>& grad,
               const Array<T>& values) {
  const auto size = [](int64_t count) { return static_cast<size_t>(count); };
  Truth<T> t{std::vector<Sum>(size(grad.size())), std::vector<Sum>(size(x.size())), std::vector<Sum>(size(w.nnz)),
             std::vector<Sum>(size(s.out_channels))};
  const int64_t taps = s.kernel_h * s.kernel_w, group_channels = s.channels / s.groups;
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      const int64_t plane = (n * s.out_channels + o) * s.out_h * s.out_w;
      for (int64_t i = 0; i < s.out_h * s.out_w; ++i) t.db[size(o)].add(grad[plane + i]);
      for (int64_t k = w.crow[o]; k < w.crow[o + 1]; ++k) {
        const int64_t c = o / (s.out_channels / s.groups) * group_channels + w.col[k] / taps;
        const int64_t ky = w.col[k] / s.kernel_w % s.kernel_h, kx = w.col[k] % s.kernel_w;
        for (int64_t oy = 0; oy < s.out_h; ++oy) {
          const int64_t iy = oy * s.stride_h + ky * s.dilation_h - s.pad_h;
          if (iy < 0 || iy >= s.height) continue;
          for (int64_t ox = 0; ox < s.out_w; ++ox) {
            const int64_t ix = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
            if (ix < 0 || ix >= s.width) continue;
            const int64_t to = plane + oy * s.out_w + ox, from = ((n * s.channels + c) * s.height + iy) * s.width + ix;
            t.y[size(to)].add(static_cast<double>(values[k]) * x[from]);
            t.dx[size(from)].add(static_cast<double>(values[k]) * grad[to]);
            t.dw[size(k)].add(static_cast<double>(x[from]) * grad[to]);
          }
        }
      }
    }
  }
  return t;
}

template <class T, class Index>
void check(const Case& c, int seed) {
  const ConvSizes s = c.sizes();
  lth::check(s);
  Random random(static_cast<uint64_t>(seed));
  const int64_t cols = s.channels / s.groups * s.kernel_h * s.kernel_w;
  const auto w = Csr<Index>::of(random_mask(random, s.out_channels, cols, c.density), s.out_channels, cols);
  const Array<T> x(s.n * s.channels * s.height * s.width), grad(s.n * s.out_channels * s.out_h * s.out_w);
  const Array<T> values(w.nnz), bias(s.out_channels);
  random.fill(x), random.fill(grad), random.fill(values), random.fill(bias);
  const Truth<T> right = truth<T>(s, w, x, grad, values);

  int turn = seed;
  each_isa([&](const char* isa) {
    for (int threads = 1; threads <= 4; ++threads, ++turn) {
      const int wanted = 1 + turn % 7;
      begin_case("conv %s %s %s case %d threads %d wanted %d", type_name<T>(), type_name<Index>(), isa, seed - 1,
                 threads, wanted);
      const bool biased = turn % 2;
      const Array<T> y(grad.size());
      poison_scratch();
      csr_conv2d_forward<T, Index>(s, x.data(), values.data(), biased ? bias.data() : nullptr, y.data(), w.crow.data(),
                                   w.col.data(), threads);
      for (int64_t i = 0; i < y.size(); ++i) {
        Sum sum = right.y[static_cast<size_t>(i)];
        if (biased) sum.add(bias[i / (s.out_h * s.out_w) % s.out_channels]);
        expect_sum(y[i], sum, "y", i);
      }

      const Array<T> dx(x.size()), dvalues(w.nnz), dbias(s.out_channels);
      poison_scratch();
      csr_conv2d_backward<T, Index>(s, grad.data(), wanted & 2 ? x.data() : nullptr,
                                    wanted & 1 ? values.data() : nullptr, wanted & 1 ? dx.data() : nullptr,
                                    wanted & 2 ? dvalues.data() : nullptr, wanted & 4 ? dbias.data() : nullptr,
                                    w.crow.data(), w.col.data(), threads);
      const auto expect = [](const Array<T>& found, const std::vector<Sum>& sums, const char* what) {
        for (int64_t i = 0; i < found.size(); ++i) expect_sum(found[i], sums[static_cast<size_t>(i)], what, i);
      };
      if (wanted & 1) expect(dx, right.dx, "dx");
      if (wanted & 2) expect(dvalues, right.dw, "dvalues");
      if (wanted & 4) expect(dbias, right.db, "dbias");
    }
  });
}

// What one image or one input channel holds reaches no other image, no output and no dx of another channel.
template <class T, class Index>
void check_isolation() {
  const ConvSizes s = Case{5, 4, 6, 6, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1}.sizes();
  Random random(3);
  const auto w = Csr<Index>::of(random_mask(random, s.out_channels, 9, 1), s.out_channels, 9);
  const Array<T> x(s.n * s.channels * 36), grad(s.n * s.out_channels * 36), values(w.nnz), y(grad.size()), dx(x.size());
  random.fill(x), random.fill(grad), random.fill(values);
  const int64_t marked = 2 * 4 + 1;  // image 2, channel 1
  for (int64_t i = 36 * marked; i < 36 * (marked + 1); ++i) x[i] = grad[i] = std::numeric_limits<T>::infinity();
  each_isa([&](const char* isa) {
    begin_case("conv isolation %s %s %s", type_name<T>(), type_name<Index>(), isa);
    csr_conv2d_forward<T, Index>(s, x.data(), values.data(), nullptr, y.data(), w.crow.data(), w.col.data(), 2);
    csr_conv2d_backward<T, Index>(s, grad.data(), nullptr, values.data(), dx.data(), nullptr, nullptr, w.crow.data(),
                                  w.col.data(), 2);
    for (int64_t i = 0; i < y.size(); ++i) {
      if (i / 36 == marked) continue;
      if (!std::isfinite(y[i])) fail("y[%d] is not finite", int(i));
      if (!std::isfinite(dx[i])) fail("dx[%d] is not finite", int(i));
    }
  });
}

}  // namespace

void conv_part() {
  each_type([](auto value, auto index) {
    int seed = 1;
    for (const Case& c : kCases) check<decltype(value), decltype(index)>(c, seed++);
    check_isolation<decltype(value), decltype(index)>();
  });
}

}  // namespace test
}  // namespace lth
