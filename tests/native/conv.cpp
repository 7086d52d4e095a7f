// The convolutions of both formats over kernels, strides, paddings, dilations, groups and image counts that leave
// strips partly empty, blocks and bands with remainders, and outputs or taps that are nothing but border; activations
// contiguous or feature-major.
#include "blocks.h"
#include "bsr_conv.h"
#include "csr_conv.h"
#include "matrix.h"

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
    {16, 3, 6, 8, 5, 1, 3, 3, 1, 1, 0, 0, 1, 1, .4},  // images that fill registers, and more and fewer than do
    {16, 4, 4, 8, 6, 1, 3, 3, 1, 1, 1, 1, 1, 1, .4},
    {33, 3, 4, 5, 4, 1, 3, 2, 1, 1, 1, 0, 1, 1, .4},
    {150, 2, 3, 3, 3, 1, 3, 3, 1, 1, 1, 1, 1, 1, .5},
    {8, 5, 5, 6, 7, 1, 3, 3, 2, 2, 1, 1, 1, 1, .3},
    {32, 7, 4, 4, 9, 1, 1, 1, 1, 1, 0, 0, 1, 1, .4},
    {4, 7, 5, 6, 9, 1, 1, 1, 1, 1, 0, 0, 1, 1, .4},
    {5, 4, 7, 9, 6, 1, 1, 1, 3, 2, 0, 0, 1, 1, .5},
    {7, 2, 13, 12, 3, 1, 2, 3, 2, 3, 3, 1, 3, 2, .5},
    {5, 6, 6, 5, 9, 3, 3, 3, 1, 1, 1, 1, 1, 1, .5},
    {20, 6, 7, 7, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, .6},
    {4, 8, 6, 5, 32, 2, 3, 3, 1, 1, 1, 1, 1, 1, .3},  // groups of whole blocks
    {2, 9, 12, 32, 10, 1, 3, 3, 1, 1, 1, 1, 1, 1, .1},  // rows so wide that they are shifted rather than transposed
    {3, 6, 9, 33, 8, 2, 3, 5, 1, 1, 1, 2, 2, 1, .2},
    {1, 40, 30, 33, 6, 1, 3, 3, 2, 2, 1, 1, 1, 1, .1},
    {2, 3, 45, 33, 70, 1, 3, 3, 1, 1, 1, 1, 1, 1, .1},  // planes: in bands, whole registers, wide kernels, many blocks
    {3, 3, 9, 32, 5, 1, 3, 3, 1, 1, 1, 1, 1, 1, .5},
    {2, 3, 30, 5, 6, 1, 3, 5, 1, 1, 1, 2, 1, 1, .5},
    {2, 4, 13, 21, 3, 1, 3, 3, 1, 1, 0, 2, 2, 2, .5},
    {2, 3, 12, 14, 200, 1, 3, 3, 1, 1, 1, 1, 1, 1, .7},
};

int64_t columns_of(const ConvSizes& s) { return s.channels / s.groups * s.kernel_h * s.kernel_w; }

// A live element of the weight: where in `values`, in which output channel, in which column.
struct Live {
  int64_t at, row, col;
};

template <class T, class Index>
struct CsrLayer {
  Csr<Index> w;
  Array<T> values;

  CsrLayer(Random& random, const ConvSizes& s, double density)
      : w(Csr<Index>::of(random_mask(random, s.out_channels, columns_of(s), density), s.out_channels, columns_of(s))),
        values(w.nnz) {
    random.fill(values);
  }
  std::vector<Live> live() const {
    std::vector<Live> all;
    for (int64_t o = 0; o < w.rows; ++o) {
      for (int64_t k = w.crow[o]; k < w.crow[o + 1]; ++k) all.push_back({k, o, w.col[k]});
    }
    return all;
  }
  void forward(const ConvSizes& s, const T* x, const T* bias, T* y, bool relu, int threads) const {
    csr_conv2d_forward<T, Index>(s, x, values.data(), bias, y, w.crow.data(), w.col.data(), relu, threads);
  }
  void backward(const ConvSizes& s, const T* grad, const T* activated, const T* x, T* dx, T* dvalues, T* dbias,
                bool grad_major, bool x_major, int threads) const {
    csr_conv2d_backward<T, Index>(s, grad, activated, x, dx == nullptr ? nullptr : values.data(), dx, dvalues, dbias,
                                  w.ccol.data(), w.row.data(), w.perm.data(), grad_major, x_major, threads);
  }
};

template <class T>
struct BsrLayer {
  Blocks<T> w;
  const Array<T>& values;

  BsrLayer(Random& random, const ConvSizes& s, int64_t r, int64_t c, double density, bool masked)
      : w(random, s.out_channels, columns_of(s), r, c, density, masked), values(w.values) {}
  std::vector<Live> live() const {
    std::vector<Live> all;
    w.each_live([&](int64_t at, int64_t row, int64_t col) { all.push_back({at, row, col}); });
    return all;
  }
  void forward(const ConvSizes& s, const T* x, const T* bias, T* y, bool relu, int threads) const {
    bsr_conv2d_forward<T>(s, x, w.weight(), bias, y, relu, threads);
  }
  void backward(const ConvSizes& s, const T* grad, const T* activated, const T* x, T* dx, T* dvalues, T* dbias,
                bool grad_major, bool x_major, int threads) const {
    BsrWeight<T> weight = w.weight();
    if (dx == nullptr) weight.values = nullptr;
    bsr_conv2d_backward<T>(s, grad, activated, x, weight, dx, dvalues, dbias, grad_major, x_major, threads);
  }
};

struct Truth {
  std::vector<Sum> y, dx, dw, db;
};

template <class T>
Truth truth(const ConvSizes& s, const std::vector<Live>& weight, const Array<T>& x, const Array<T>& grad,
            const Array<T>& values) {
  const auto size = [](int64_t count) { return static_cast<size_t>(count); };
  Truth t{std::vector<Sum>(size(grad.size())), std::vector<Sum>(size(x.size())), std::vector<Sum>(size(values.size())),
          std::vector<Sum>(size(s.out_channels))};
  const int64_t taps = s.kernel_h * s.kernel_w, group_channels = s.channels / s.groups;
  const int64_t pixels = s.out_h * s.out_w;
  for (int64_t i = 0; i < grad.size(); ++i) t.db[size(i / pixels % s.out_channels)].add(grad[i]);
  for (const Live& k : weight) {
    const int64_t c = k.row / (s.out_channels / s.groups) * group_channels + k.col / taps;
    const int64_t ky = k.col / s.kernel_w % s.kernel_h, kx = k.col % s.kernel_w;
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t oy = 0; oy < s.out_h; ++oy) {
        const int64_t iy = oy * s.stride_h + ky * s.dilation_h - s.pad_h;
        if (iy < 0 || iy >= s.height) continue;
        for (int64_t ox = 0; ox < s.out_w; ++ox) {
          const int64_t ix = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
          if (ix < 0 || ix >= s.width) continue;
          const int64_t to = (n * s.out_channels + k.row) * pixels + oy * s.out_w + ox;
          const int64_t from = ((n * s.channels + c) * s.height + iy) * s.width + ix;
          t.y[size(to)].add(static_cast<double>(values[k.at]) * x[from]);
          t.dx[size(from)].add(static_cast<double>(values[k.at]) * grad[to]);
          t.dw[size(k.at)].add(static_cast<double>(x[from]) * grad[to]);
        }
      }
    }
  }
  return t;
}

// Where element i of a contiguous [n, ...] array lies in memory [..., n].
int64_t place(int64_t i, int64_t n, int64_t size, bool major) {
  return major ? i % (size / n) * n + i / (size / n) : i;
}

template <class T>
void to_format(const Array<T>& from, int64_t n, bool major, const Array<T>& to) {
  for (int64_t i = 0; i < from.size(); ++i) to[place(i, n, from.size(), major)] = from[i];
}

template <class T, class Layer>
void check_layer(const ConvSizes& sizes, const Layer& layer, Random& random, int first_threads, int last_threads,
                 const char* name) {
  ConvSizes s = sizes;
  const Array<T> x(s.n * s.channels * s.height * s.width), grad(s.n * s.out_channels * s.out_h * s.out_w);
  const Array<T> bias(s.out_channels), x_in(x.size()), grad_in(grad.size());
  random.fill(x), random.fill(grad), random.fill(bias);
  const bool gated = random.below(2) == 1;
  const Array<T> activated(grad.size()), activated_in(grad.size()), passed(grad.size());
  random.fill(activated);
  for (int64_t i = 0; i < grad.size(); ++i) {
    passed[i] = gated && activated[i] <= 0 ? T(0) : grad[i];
    if (gated && activated[i] <= 0) grad[i] = std::numeric_limits<T>::infinity();
  }
  const Truth right = truth<T>(s, layer.live(), x, passed, layer.values);

  each_isa([&](const char* isa) {
    for (int threads = first_threads; threads <= last_threads; ++threads) {
      const int wanted = 1 + static_cast<int>(random.below(7)), formats = s.n < 2 ? 0 : int(random.below(8));
      const bool y_major = formats & 1, grad_major = formats & 2, x_major = formats & 4, biased = random.below(2) == 1;
      const bool relu = random.below(2) == 1;
      begin_case("%s %s %s threads %d wanted %d feature-major: forward %d grad %d x %d relu %d", name,
                 type_name<T>(), isa, threads, wanted, y_major, grad_major, x_major, relu);
      const Array<T> y(grad.size());
      s.feature_major = y_major;
      to_format(x, s.n, y_major, x_in);
      poison_scratch();
      layer.forward(s, x_in.data(), biased ? bias.data() : nullptr, y.data(), relu, threads);
      for (int64_t i = 0; i < y.size(); ++i) {
        Sum sum = right.y[static_cast<size_t>(i)];
        if (biased) sum.add(bias[i / (s.out_h * s.out_w) % s.out_channels]);
        if (relu) sum.relu();
        expect_sum(y[place(i, s.n, y.size(), y_major)], sum, "y", i);
      }

      const Array<T> dx(x.size()), dvalues(layer.values.size()), dbias(s.out_channels);
      s.feature_major = false;
      to_format(x, s.n, x_major, x_in), to_format(grad, s.n, grad_major, grad_in);
      to_format(activated, s.n, grad_major, activated_in);
      poison_scratch();
      layer.backward(s, grad_in.data(), gated ? activated_in.data() : nullptr, wanted & 2 ? x_in.data() : nullptr,
                     wanted & 1 ? dx.data() : nullptr, wanted & 2 ? dvalues.data() : nullptr,
                     wanted & 4 ? dbias.data() : nullptr, grad_major, x_major, threads);
      for (int64_t i = 0; wanted & 1 && i < dx.size(); ++i)
        expect_sum(dx[place(i, s.n, dx.size(), x_major)], right.dx[static_cast<size_t>(i)], "dx", i);
      if (wanted & 2) expect_sums(dvalues, right.dw, "dvalues");
      if (wanted & 4) expect_sums(dbias, right.db, "dbias");
    }
  });
}

template <class T, class Index>
void check_csr(const Case& c, int number) {
  const ConvSizes s = c.sizes();
  lth::check(s);
  Random random(static_cast<uint64_t>(number + 1));
  char name[64];
  std::snprintf(name, sizeof name, "conv case %d %s", number, type_name<Index>());
  check_layer<T>(s, CsrLayer<T, Index>(random, s, c.density), random, 1, 4, name);
}

const struct {
  int64_t r, c;
} kBlocks[] = {{4, 1}, {4, 4}, {3, 5}, {16, 16}, {1, 4}, {64, 64}, {4, 9}, {1, 1}, {8, 3}};

// Every case with three of the blocks, with and without a mask, each with two of the thread counts.
template <class T>
void check_bsr(const Case& c, int number) {
  const ConvSizes s = c.sizes();
  for (int i = 0; i < 3; ++i) {
    Random random(static_cast<uint64_t>(4 * number + i + 1));
    const auto& block = kBlocks[(number + 3 * i + sizeof(T) / 8) % (sizeof(kBlocks) / sizeof(kBlocks[0]))];
    const bool masked = random.below(2) == 1;
    char name[64];
    std::snprintf(name, sizeof name, "conv case %d block %dx%d mask %d", number, int(block.r), int(block.c), masked);
    const int threads = 1 + 2 * static_cast<int>(random.below(2));
    check_layer<T>(s, BsrLayer<T>(random, s, block.r, block.c, c.density, masked), random, threads, threads + 1, name);
  }
}

// What one image or one input channel holds reaches no other image, no output and no dx of another channel.
template <class T, class Layer>
void check_isolation(const ConvSizes& sizes, const Layer& layer, const char* name) {
  ConvSizes s = sizes;
  Random random(3);
  const int64_t size = s.n * s.channels * 36, marked = 2 * 4 + 1;  // image 2, channel 1
  const Array<T> x(size), grad(size), x_in(size), grad_in(size), y(size), dx(size);
  random.fill(x), random.fill(grad);
  for (int64_t i = 36 * marked; i < 36 * (marked + 1); ++i) x[i] = grad[i] = std::numeric_limits<T>::infinity();
  each_isa([&](const char* isa) {
    for (bool major : {false, true}) {
      begin_case("%s isolation %s %s feature-major %d", name, type_name<T>(), isa, major);
      s.feature_major = major;
      to_format(x, s.n, major, x_in), to_format(grad, s.n, major, grad_in);
      layer.forward(s, x_in.data(), nullptr, y.data(), false, 2);
      s.feature_major = false;
      layer.backward(s, grad_in.data(), nullptr, nullptr, dx.data(), nullptr, nullptr, major, major, 2);
      for (int64_t i = 0; i < size; ++i) {
        if (i / 36 == marked) continue;
        if (!std::isfinite(y[place(i, s.n, size, major)])) fail("y[%d] is not finite", int(i));
        if (!std::isfinite(dx[place(i, s.n, size, major)])) fail("dx[%d] is not finite", int(i));
      }
    }
  });
}

}  // namespace

void conv_part() {
  const ConvSizes depthwise = Case{5, 4, 6, 6, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1}.sizes();
  each_type([&](auto value, auto index) {
    using T = decltype(value);
    using Index = decltype(index);
    int number = 0;
    for (const Case& c : kCases) check_csr<T, Index>(c, number++);
    Random random(3);
    check_isolation<T>(depthwise, CsrLayer<T, Index>(random, depthwise, 1), "conv");
  });
}

void bsr_conv_part() {
  int number = 0;
  for (const Case& c : kCases) {
    check_bsr<float>(c, number);
    check_bsr<double>(c, number++);
  }
  const ConvSizes depthwise = Case{5, 4, 6, 6, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1}.sizes();
  Random random(3);
  check_isolation<float>(depthwise, BsrLayer<float>(random, depthwise, 1, 3, 1, false), "conv of blocks");
}

}  // namespace test
}  // namespace lth
