// csr_linear_forward and csr_linear_backward over odd shapes, every kind of strides, thread counts, and every choice of
// wanted gradients; memory between strided elements must stay as it was.
#include "csr_linear.h"

#include "harness.h"
#include "kernels.h"

namespace lth {
namespace test {
namespace {

constexpr int kLayouts = 4;

// A [batch, features] array in one of four layouts: batch-major, that with gaps, feature-major, strided both ways.
template <class T>
struct Matrix {
  int64_t batch, features;
  Strides s;
  Array<T> data;

  Matrix(int64_t n, int64_t f, int layout)
      : batch(n),
        features(f),
        s(layout == 0   ? Strides{f, 1}
          : layout == 1 ? Strides{f + 3, 1}
          : layout == 2 ? Strides{1, n + 1}
                        : Strides{2, 2 * n + 3}),
        data(n == 0 || f == 0 ? 0 : (n - 1) * s.batch + (f - 1) * s.feature + 1) {}

  T& at(int64_t n, int64_t f) const { return data[n * s.batch + f * s.feature]; }

  void copy(const std::vector<T>& from) const {
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t f = 0; f < features; ++f) at(n, f) = from[static_cast<size_t>(n * features + f)];
    }
  }

  void expect(const std::vector<Sum>& truth, const char* what) {
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t f = 0; f < features; ++f)
        expect_sum(at(n, f), truth[static_cast<size_t>(n * features + f)], what, n, f);
    }
    for (int64_t n = 0; n < batch; ++n) {  // what is poison now was a gap, or was never written, which failed above
      for (int64_t f = 0; f < features; ++f) std::memset(&at(n, f), 0xff, sizeof(T));
    }
    for (int64_t i = 0; i < data.size(); ++i) {
      if (!is_poison(data[i])) fail("a gap of %s was written", what);
    }
  }
};

struct Case {
  int64_t batch, rows, cols;
  double density;
};

const Case kCases[] = {
    {1, 1, 1, 1},      {1, 5, 7, .5},     {2, 3, 0, 1},      {0, 4, 5, .5},     {3, 0, 5, 1},        {5, 17, 33, .2},
    {8, 9, 10, 0},     {16, 12, 13, 1},   {17, 20, 21, .3},  {33, 40, 29, .1},  {64, 7, 300, .6},    {67, 5, 270, .9},
    {130, 31, 31, .2}, {3, 1600, 9, .15}, {200, 35, 70, .1}, {2, 6, 70000, 1e-4}, {1300, 3, 2000, .01},
};

template <class T, class Index>
void check(const Case& c, int seed) {
  if (sizeof(Index) == 2 && c.cols > 65536) return;
  Random random(static_cast<uint64_t>(seed));
  const auto w = Csr<Index>::of(random_mask(random, c.rows, c.cols, c.density), c.rows, c.cols);
  std::vector<T> x(static_cast<size_t>(c.batch * c.cols)), grad(static_cast<size_t>(c.batch * c.rows));
  for (T& v : x) v = static_cast<T>(random.uniform());
  for (T& v : grad) v = static_cast<T>(random.uniform());
  const Array<T> values(w.nnz), bias(c.rows);
  random.fill(values), random.fill(bias);

  std::vector<Sum> y(grad.size()), y_biased(grad.size()), dx(x.size());
  std::vector<Sum> dw(static_cast<size_t>(w.nnz)), db(static_cast<size_t>(c.rows));
  for (int64_t n = 0; n < c.batch; ++n) {
    for (int64_t r = 0; r < c.rows; ++r) {
      const size_t at = static_cast<size_t>(n * c.rows + r);
      for (int64_t k = w.crow[r]; k < w.crow[r + 1]; ++k) {
        const size_t from = static_cast<size_t>(n * c.cols + w.col[k]);
        y[at].add(static_cast<double>(values[k]) * x[from]);
        dx[from].add(static_cast<double>(values[k]) * grad[at]);
        dw[static_cast<size_t>(k)].add(static_cast<double>(x[from]) * grad[at]);
      }
      y_biased[at] = y[at];
      y_biased[at].add(bias[r]);
      db[static_cast<size_t>(r)].add(grad[at]);
    }
  }

  const LinearSizes sizes{c.batch, c.rows, c.cols};
  int turn = seed;
  each_isa([&](const char* isa) {
    for (int threads = 1; threads <= 4; ++threads, ++turn) {
      const int wanted = 1 + turn % 7;
      begin_case("linear %s %s %s batch %d rows %d cols %d density %g threads %d layouts %d wanted %d", type_name<T>(),
                 type_name<Index>(), isa, int(c.batch), int(c.rows), int(c.cols), c.density, threads, turn, wanted);
      const Matrix<T> in(c.batch, c.cols, turn % kLayouts), out_grad(c.batch, c.rows, turn / 2 % kLayouts);
      in.copy(x), out_grad.copy(grad);
      Matrix<T> out(c.batch, c.rows, turn / 3 % kLayouts), in_grad(c.batch, c.cols, turn / 4 % kLayouts);
      poison_scratch();
      csr_linear_forward<T, Index>(sizes, in.data.data(), in.s, values.data(), turn % 2 ? bias.data() : nullptr,
                                   out.data.data(), out.s, w.crow.data(), w.col.data(), threads);
      out.expect(turn % 2 ? y_biased : y, "y");

      const Array<T> dvalues(w.nnz), dbias(c.rows);
      poison_scratch();
      csr_linear_backward<T, Index>(sizes, out_grad.data.data(), out_grad.s, wanted & 2 ? in.data.data() : nullptr,
                                    in.s, wanted & 1 ? values.data() : nullptr,
                                    wanted & 1 ? in_grad.data.data() : nullptr, in_grad.s,
                                    wanted & 2 ? dvalues.data() : nullptr,
                                    wanted & 4 ? dbias.data() : nullptr, w.ccol.data(), w.row.data(), w.perm.data(),
                                    threads);
      if (wanted & 1) in_grad.expect(dx, "dx");
      const auto expect = [](const Array<T>& found, const std::vector<Sum>& truth, const char* what) {
        for (int64_t i = 0; i < found.size(); ++i) expect_sum(found[i], truth[static_cast<size_t>(i)], what, i);
      };
      if (wanted & 2) expect(dvalues, dw, "dvalues");
      if (wanted & 4) expect(dbias, db, "dbias");
    }
  });
}

// What one sample holds reaches no other sample.
template <class T, class Index>
void check_isolation() {
  const int64_t batch = 19, rows = 11, cols = 13;
  Random random(3);
  const auto w = Csr<Index>::of(random_mask(random, rows, cols, .4), rows, cols);
  const Array<T> x(batch * cols), grad(batch * rows), values(w.nnz), y(batch * rows), dx(batch * cols);
  random.fill(x), random.fill(grad), random.fill(values);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t c = 0; c < cols; ++c) x[5 * cols + c] = nan;
  for (int64_t r = 0; r < rows; ++r) grad[5 * rows + r] = nan;
  each_isa([&](const char* isa) {
    begin_case("linear isolation %s %s %s", type_name<T>(), type_name<Index>(), isa);
    csr_linear_forward<T, Index>({batch, rows, cols}, x.data(), {cols, 1}, values.data(), nullptr, y.data(), {rows, 1},
                                 w.crow.data(), w.col.data(), 2);
    csr_linear_backward<T, Index>({batch, rows, cols}, grad.data(), {rows, 1}, nullptr, {cols, 1}, values.data(),
                                  dx.data(), {cols, 1}, nullptr, nullptr, w.ccol.data(), w.row.data(),
                                  w.perm.data(), 2);
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t r = 0; r < rows && n != 5; ++r) {
        if (std::isnan(y[n * rows + r])) fail("y[%d, %d] is NaN", int(n), int(r));
      }
      for (int64_t c = 0; c < cols && n != 5; ++c) {
        if (std::isnan(dx[n * cols + c])) fail("dx[%d, %d] is NaN", int(n), int(c));
      }
    }
  });
}

}  // namespace

void linear_part() {
  each_type([](auto value, auto index) {
    int seed = 1;
    for (const Case& c : kCases) check<decltype(value), decltype(index)>(c, seed++);
    check_isolation<decltype(value), decltype(index)>();
  });
}

}  // namespace test
}  // namespace lth
