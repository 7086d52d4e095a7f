// csr_linear_forward and csr_linear_backward over odd shapes, every kind of strides, thread counts, and every choice of
// wanted gradients; memory between strided elements must stay as it was.
#include "csr_linear.h"

#include "csr_small.h"
#include "matrix.h"

namespace lth {
namespace test {
namespace {

struct Case {
  int64_t batch, rows, cols;
  double density;
};

// Batches about the widths of all registers: strips narrower than one, rows before columns, and neither.
const int64_t kBatches[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 32, 33, 64};

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
  std::vector<T> above(grad.size()), counted(grad);  // dy in front of a ReLU, for half of the cases
  for (T& v : above) v = static_cast<T>(std::max(0.0, random.uniform()));
  const bool gated = random.below(2) == 1;
  for (size_t i = 0; gated && i < grad.size(); ++i) counted[i] = above[i] > 0 ? grad[i] : T(0);
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
        dx[from].add(static_cast<double>(values[k]) * counted[at]);
        dw[static_cast<size_t>(k)].add(static_cast<double>(x[from]) * counted[at]);
      }
      y_biased[at] = y[at];
      y_biased[at].add(bias[r]);
      db[static_cast<size_t>(r)].add(counted[at]);
    }
  }

  const LinearSizes sizes{c.batch, c.rows, c.cols};
  each_isa([&](const char* isa) {
    for (int threads = 1; threads <= 4; ++threads) {
      const int wanted = 1 + static_cast<int>(random.below(7)), turn = static_cast<int>(random.below(1 << 20));
      begin_case("linear %s %s %s batch %d rows %d cols %d density %g threads %d turn %d wanted %d few %d by rows %d",
                 type_name<T>(), type_name<Index>(), isa, int(c.batch), int(c.rows), int(c.cols), c.density, threads,
                 turn, wanted, takes_few<T>(c.batch), takes_rows<T>(c.batch, w.nnz));
      const Matrix<T> in(c.batch, c.cols, turn % kLayouts), out_grad(c.batch, c.rows, turn / 5 % kLayouts);
      const Matrix<T> activated(c.batch, c.rows, turn / 625 % kLayouts);
      in.copy(x), out_grad.copy(grad), activated.copy(above);
      Matrix<T> out(c.batch, c.rows, turn / 25 % kLayouts), in_grad(c.batch, c.cols, turn / 125 % kLayouts);
      poison_scratch();
      csr_linear_forward<T, Index>(sizes, in.data.data(), in.s, values.data(), turn % 2 ? bias.data() : nullptr,
                                   out.data.data(), out.s, w.crow.data(), w.col.data(), turn & 2, threads);
      out.expect(turn % 2 ? y_biased : y, "y", turn & 2);

      const Array<T> dvalues(w.nnz), dbias(c.rows);
      poison_scratch();
      csr_linear_backward<T, Index>(sizes,
                                    {out_grad.data.data(), out_grad.s, gated ? activated.data.data() : nullptr,
                                     activated.s},
                                    wanted & 2 ? in.data.data() : nullptr, in.s, wanted & 1 ? values.data() : nullptr,
                                    wanted & 1 ? in_grad.data.data() : nullptr, in_grad.s,
                                    wanted & 2 ? dvalues.data() : nullptr,
                                    wanted & 4 ? dbias.data() : nullptr, w.crow.data(), w.col.data(), w.ccol.data(),
                                    w.row.data(), w.perm.data(), threads);
      if (wanted & 1) in_grad.expect(dx, "dx");
      if (wanted & 2) expect_sums(dvalues, dw, "dvalues");
      if (wanted & 4) expect_sums(dbias, db, "dbias");
    }
  });
}

// What one sample holds reaches no other sample.
template <class T, class Index>
void check_isolation(int64_t batch) {
  const int64_t rows = 11, cols = 13, marked = batch / 2;
  Random random(3);
  const auto w = Csr<Index>::of(random_mask(random, rows, cols, .4), rows, cols);
  const Array<T> x(batch * cols), grad(batch * rows), values(w.nnz), y(batch * rows), dx(batch * cols);
  random.fill(x), random.fill(grad), random.fill(values);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t c = 0; c < cols; ++c) x[marked * cols + c] = nan;
  for (int64_t r = 0; r < rows; ++r) grad[marked * rows + r] = nan;
  each_isa([&](const char* isa) {
    begin_case("linear isolation %s %s %s batch %d", type_name<T>(), type_name<Index>(), isa, int(batch));
    csr_linear_forward<T, Index>({batch, rows, cols}, x.data(), {cols, 1}, values.data(), nullptr, y.data(), {rows, 1},
                                 w.crow.data(), w.col.data(), batch % 2 == 0, 2);
    csr_linear_backward<T, Index>({batch, rows, cols}, {grad.data(), {rows, 1}}, nullptr, {cols, 1}, values.data(),
                                  dx.data(), {cols, 1}, nullptr, nullptr, w.crow.data(), w.col.data(), w.ccol.data(),
                                  w.row.data(), w.perm.data(), 2);
    expect_finite_rows(y, rows, marked, "y");
    expect_finite_rows(dx, cols, marked, "dx");
  });
}

}  // namespace

void linear_part() {
  each_type([](auto value, auto index) {
    int seed = 1;
    using T = decltype(value);
    using Index = decltype(index);
    for (const Case& c : kCases) check<T, Index>(c, seed++);
    for (int64_t batch : kBatches) {
      check<T, Index>({batch, 37, 29, .6}, seed++);  // enough for dx of each thread's own
      check<T, Index>({batch, 150, 90, .05}, seed++);
    }
    // So many non-zeros that larger batches go row by row, too.
    if (sizeof(T) / 2 == sizeof(Index)) check<T, Index>({sizeof(T) == 4 ? 48 : 20, 300, 500, .95}, seed++);
    for (int64_t batch : {3, 7, 19, 45}) check_isolation<T, Index>(batch);
  });
}

}  // namespace test
}  // namespace lth
