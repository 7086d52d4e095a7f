// Forward passes in bfloat16, of both formats, linear and convolutional: the sum of exact products in float, rounded
// once. Truth is computed in double from the numbers that memory holds.
#include "bf16_forward.h"

#include <limits>

#include "harness.h"

template <>
class std::numeric_limits<lth::Bf16> {
 public:
  static lth::Bf16 quiet_NaN() { return lth::Bf16(std::numeric_limits<float>::quiet_NaN()); }
};

#include "blocks.h"
#include "matrix.h"

namespace lth {
namespace test {

// What adding up in float may lose, and then half a unit in the last of eight bits.
template <>
void expect_sum<Bf16>(Bf16 found, const Sum& truth, const char* what, int64_t i, int64_t j) {
  const double added = std::numeric_limits<float>::epsilon() * static_cast<double>(truth.terms + 2) * truth.magnitude;
  const double bound = added + (std::fabs(truth.value) + added) / 256;
  if (!(std::fabs(static_cast<double>(found) - truth.value) <= bound)) {
    fail("%s[%lld, %lld] is %.9g, not %.9g", what, static_cast<long long>(i), static_cast<long long>(j),
         static_cast<double>(found), truth.value);
  }
}

namespace {

struct Live {  // an element of a weight that counts
  int64_t row, col;
  double value;
};

template <class Index>
struct CsrWeight {
  Csr<Index> w;
  Array<Bf16> values;

  CsrWeight(Random& random, int64_t rows, int64_t cols, double density)
      : w(Csr<Index>::of(random_mask(random, rows, cols, density), rows, cols)), values(w.nnz) {
    random.fill(values);
  }
  std::vector<Live> live() const {
    std::vector<Live> all;
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t k = w.crow[r]; k < w.crow[r + 1]; ++k) all.push_back({r, w.col[k], values[k]});
    }
    return all;
  }
  void linear(const LinearSizes& s, const Bf16* x, Strides xs, const Bf16* bias, Bf16* y, Strides ys, bool relu,
              int threads) const {
    csr_linear_forward<Bf16, Index>(s, x, xs, values.data(), bias, y, ys, w.crow.data(), w.col.data(), relu, threads);
  }
  void conv(const ConvSizes& s, const Bf16* x, const Bf16* bias, Bf16* y, bool relu, int threads) const {
    csr_conv2d_forward<Bf16, Index>(s, x, values.data(), bias, y, w.crow.data(), w.col.data(), relu, threads);
  }
};

struct BlockWeight {
  Blocks<Bf16> w;

  BlockWeight(Random& random, int64_t rows, int64_t cols, int64_t r, int64_t c, double density, bool masked)
      : w(random, rows, cols, r, c, density, masked) {}
  std::vector<Live> live() const {
    std::vector<Live> all;
    w.each_live([&](int64_t at, int64_t row, int64_t col) { all.push_back({row, col, w.values[at]}); });
    return all;
  }
  void linear(const LinearSizes& s, const Bf16* x, Strides xs, const Bf16* bias, Bf16* y, Strides ys, bool relu,
              int threads) const {
    bsr_linear_forward<Bf16>(s, x, xs, w.weight(), bias, y, ys, relu, threads);
  }
  void conv(const ConvSizes& s, const Bf16* x, const Bf16* bias, Bf16* y, bool relu, int threads) const {
    bsr_conv2d_forward<Bf16>(s, x, w.weight(), bias, y, relu, threads);
  }
};

// Calls body(weight, name) for weights of both formats over [rows, cols].
template <class Body>
void each_weight(Random& random, int64_t rows, int64_t cols, double density, Body&& body) {
  if (cols <= 65536) body(CsrWeight<uint16_t>(random, rows, cols, density), "csr u16");
  body(CsrWeight<int32_t>(random, rows, cols, density), "csr i32");
  body(BlockWeight(random, rows, cols, 4, 1, density, false), "bsr 4x1");
  body(BlockWeight(random, rows, cols, 4, 4, density, true), "bsr 4x4 masked");
  body(BlockWeight(random, rows, cols, 16, 16, density, false), "bsr 16x16");
  body(BlockWeight(random, rows, cols, 3, 5, density, true), "bsr 3x5 masked");
}

std::vector<Bf16> numbers(Random& random, int64_t count) {
  std::vector<Bf16> all(static_cast<size_t>(count));
  for (Bf16& v : all) v = Bf16(static_cast<float>(random.uniform()));
  return all;
}

void check_linear(int64_t batch, int64_t rows, int64_t cols, double density, int seed) {
  Random random(static_cast<uint64_t>(seed));
  each_weight(random, rows, cols, density, [&](const auto& weight, const char* name) {
    const std::vector<Bf16> x = numbers(random, batch * cols);
    const Array<Bf16> bias(rows);
    random.fill(bias);
    std::vector<Sum> y(static_cast<size_t>(batch * rows)), y_biased;
    for (const Live& k : weight.live()) {
      for (int64_t n = 0; n < batch; ++n)
        y[static_cast<size_t>(n * rows + k.row)].add(k.value * x[static_cast<size_t>(n * cols + k.col)]);
    }
    y_biased = y;
    for (size_t i = 0; i < y.size(); ++i) y_biased[i].add(bias[static_cast<int64_t>(i) % rows]);
    each_isa([&](const char* isa) {
      for (int threads = 1; threads <= 3; ++threads) {
        const int turn = static_cast<int>(random.below(1 << 20));
        begin_case("bf16 linear %s %s batch %d rows %d cols %d density %g threads %d turn %d", name, isa, int(batch),
                   int(rows), int(cols), density, threads, turn);
        const Matrix<Bf16> in(batch, cols, turn % kLayouts);
        in.copy(x);
        Matrix<Bf16> out(batch, rows, turn / 5 % kLayouts);
        poison_scratch();
        weight.linear({batch, rows, cols}, in.data.data(), in.s, turn & 1 ? bias.data() : nullptr, out.data.data(),
                      out.s, turn & 2, threads);
        out.expect(turn & 1 ? y_biased : y, "y", turn & 2);
      }
    });
  });
}

void check_conv(ConvSizes s, double density, int seed) {
  Random random(static_cast<uint64_t>(seed));
  const int64_t taps = s.kernel_h * s.kernel_w, channels = s.channels / s.groups, pixels = s.out_h * s.out_w;
  each_weight(random, s.out_channels, channels * taps, density, [&](const auto& weight, const char* name) {
    const std::vector<Bf16> x = numbers(random, s.n * s.channels * s.height * s.width);
    const Array<Bf16> bias(s.out_channels);
    random.fill(bias);
    std::vector<Sum> y(static_cast<size_t>(s.n * s.out_channels * pixels));
    for (const Live& k : weight.live()) {
      const int64_t c = k.row / (s.out_channels / s.groups) * channels + k.col / taps;
      for (int64_t i = 0; i < s.n * pixels; ++i) {
        const int64_t n = i / pixels, oy = i % pixels / s.out_w, ox = i % s.out_w;
        const int64_t iy = oy * s.stride_h + k.col / s.kernel_w % s.kernel_h * s.dilation_h - s.pad_h;
        const int64_t ix = ox * s.stride_w + k.col % s.kernel_w * s.dilation_w - s.pad_w;
        if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
        y[static_cast<size_t>((n * s.out_channels + k.row) * pixels + i % pixels)].add(
            k.value * x[static_cast<size_t>(((n * s.channels + c) * s.height + iy) * s.width + ix)]);
      }
    }
    for (size_t i = 0; i < y.size(); ++i) y[i].add(bias[static_cast<int64_t>(i) / pixels % s.out_channels]);
    each_isa([&](const char* isa) {
      for (int turn = 0; turn < 4; ++turn) {
        s.feature_major = turn % 2;
        const bool relu = turn >= 2;
        begin_case("bf16 conv %s %s n %d channels %d to %d, %dx%d, kernel %dx%d, stride %d, groups %d, turn %d", name,
                   isa, int(s.n), int(s.channels), int(s.out_channels), int(s.height), int(s.width), int(s.kernel_h),
                   int(s.kernel_w), int(s.stride_h), int(s.groups), turn);
        // As matrices of images and features, of which layouts 0 and 4 are the two formats.
        const int layout = s.feature_major ? 4 : 0;
        const Matrix<Bf16> in(s.n, s.channels * s.height * s.width, layout);
        in.copy(x);
        Matrix<Bf16> out(s.n, s.out_channels * pixels, layout);
        poison_scratch();
        weight.conv(s, in.data.data(), bias.data(), out.data.data(), relu, 1 + turn % 3);
        out.expect(y, "y", relu);
      }
    });
  });
}

ConvSizes sizes_of(int64_t n, int64_t channels, int64_t height, int64_t width, int64_t out, int64_t groups,
                   int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const auto extent = [&](int64_t in) { return (in + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; };
  return {n,      channels, height, width, out,      groups,   kernel,         kernel,       stride,
          stride, pad,      pad,    dilation, dilation, extent(height), extent(width)};
}

}  // namespace

void bf16_part() {
  int seed = 1;
  for (int64_t batch : {0, 1, 2, 3, 5, 8, 16, 17, 32, 33, 70, 200}) {
    check_linear(batch, 37, 29, .4, seed++);
    check_linear(batch, 20, 150, .05, seed++);
  }
  check_linear(4, 9, 11, 0, seed++);
  check_linear(7, 12, 13, 1, seed++);
  check_linear(40, 3, 1200, .3, seed++);
  for (int64_t n : {0, 1, 3, 16, 32, 40}) {
    check_conv(sizes_of(n, 6, 6, 5, 8, 1, 3, 1, 1, 1), .4, seed++);
    check_conv(sizes_of(n, 4, 7, 9, 6, 2, 3, 2, 1, 1), .5, seed++);
    check_conv(sizes_of(n, 5, 4, 4, 7, 1, 1, 1, 0, 1), .3, seed++);
    check_conv(sizes_of(n, 3, 8, 7, 5, 1, 3, 1, 2, 2), .5, seed++);
  }
}

}  // namespace test
}  // namespace lth
