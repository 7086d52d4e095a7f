// bsr_linear_forward and bsr_linear_backward as linear.cpp has those for CSR: every kind of block, blocks over the edge
// of the weight, entries of blocks that are not live, single samples, several strips, rounds and bands.
#include "bsr_linear.h"

#include "blocks.h"
#include "matrix.h"

namespace lth {
namespace test {
namespace {

struct Block {
  int64_t r, c;
};

const Block kBlocks[] = {{1, 1}, {4, 1}, {1, 4}, {4, 4}, {3, 5}, {16, 16}, {64, 64}, {7, 3}, {8, 1}, {2, 2}};
const int64_t kBatches[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 33, 64};

struct Case {
  int64_t batch, rows, cols;
  double density;
};

// For blocks of any size.
const Case kCases[] = {{0, 9, 11, .5},   {5, 0, 9, 1},    {5, 9, 0, 1},    {4, 9, 11, 0},
                       {3, 1, 1, 1},     {130, 31, 35, .3}, {17, 3, 200, .5}, {70, 200, 3, .5}};

template <class T>
void check(const Block& block, const Case& c, bool masked, int seed, int first_threads = 1, int last_threads = 4) {
  Random random(static_cast<uint64_t>(seed));
  const Blocks<T> w(random, c.rows, c.cols, block.r, block.c, c.density, masked);
  std::vector<T> x(static_cast<size_t>(c.batch * c.cols)), grad(static_cast<size_t>(c.batch * c.rows));
  for (T& v : x) v = static_cast<T>(random.uniform());
  for (T& v : grad) v = static_cast<T>(random.uniform());
  std::vector<T> above(grad.size()), counted(grad);  // dy in front of a ReLU, for half of the cases
  for (T& v : above) v = static_cast<T>(std::max(0.0, random.uniform()));
  const bool gated = random.below(2) == 1;
  for (size_t i = 0; gated && i < grad.size(); ++i) counted[i] = above[i] > 0 ? grad[i] : T(0);
  const Array<T> bias(c.rows);
  random.fill(bias);

  std::vector<Sum> y(grad.size()), y_biased, dx(x.size());
  std::vector<Sum> dw(static_cast<size_t>(w.values.size())), db(static_cast<size_t>(c.rows));
  w.each_live([&](int64_t at, int64_t row, int64_t col) {
    for (int64_t n = 0; n < c.batch; ++n) {
      const size_t to = static_cast<size_t>(n * c.rows + row), from = static_cast<size_t>(n * c.cols + col);
      y[to].add(static_cast<double>(w.values[at]) * x[from]);
      dx[from].add(static_cast<double>(w.values[at]) * counted[to]);
      dw[static_cast<size_t>(at)].add(static_cast<double>(x[from]) * counted[to]);
    }
  });
  y_biased = y;
  for (size_t i = 0; i < grad.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) % c.rows;
    y_biased[i].add(bias[row]);
    db[static_cast<size_t>(row)].add(counted[i]);
  }

  const LinearSizes sizes{c.batch, c.rows, c.cols};
  each_isa([&](const char* isa) {
    for (int threads = first_threads; threads <= last_threads; ++threads) {
      const int wanted = 1 + static_cast<int>(random.below(7)), turn = static_cast<int>(random.below(1 << 20));
      begin_case("bsr linear %s %s block %dx%d batch %d rows %d cols %d density %g mask %d threads %d turn %d want %d",
                 type_name<T>(), isa, int(block.r), int(block.c), int(c.batch), int(c.rows), int(c.cols), c.density,
                 masked, threads, turn, wanted);
      const Matrix<T> in(c.batch, c.cols, turn % kLayouts), out_grad(c.batch, c.rows, turn / 5 % kLayouts);
      const Matrix<T> activated(c.batch, c.rows, turn / 625 % kLayouts);
      in.copy(x), out_grad.copy(grad), activated.copy(above);
      Matrix<T> out(c.batch, c.rows, turn / 25 % kLayouts), in_grad(c.batch, c.cols, turn / 125 % kLayouts);
      poison_scratch();
      bsr_linear_forward<T>(sizes, in.data.data(), in.s, w.weight(), turn % 2 ? bias.data() : nullptr,
                            out.data.data(), out.s, turn & 2, threads);
      out.expect(turn % 2 ? y_biased : y, "y", turn & 2);

      const Array<T> dvalues(w.values.size()), dbias(c.rows);
      BsrWeight<T> weight = w.weight();
      if (!(wanted & 1)) weight.values = nullptr;
      poison_scratch();
      bsr_linear_backward<T>(sizes,
                             {out_grad.data.data(), out_grad.s, gated ? activated.data.data() : nullptr, activated.s},
                             wanted & 2 ? in.data.data() : nullptr, in.s, weight,
                             wanted & 1 ? in_grad.data.data() : nullptr, in_grad.s,
                             wanted & 2 ? dvalues.data() : nullptr, wanted & 4 ? dbias.data() : nullptr, threads);
      if (wanted & 1) in_grad.expect(dx, "dx");
      if (wanted & 2) expect_sums(dvalues, dw, "dvalues");
      if (wanted & 4) expect_sums(dbias, db, "dbias");
    }
  });
}

// What one sample holds reaches no other sample.
template <class T>
void check_isolation(const Block& block, int64_t batch) {
  const int64_t rows = 2 * block.r + 1, cols = 3 * block.c + 1, marked = batch / 2;
  Random random(3);
  const Blocks<T> w(random, rows, cols, block.r, block.c, .6, true);
  const Array<T> x(batch * cols), grad(batch * rows), y(batch * rows), dx(batch * cols);
  random.fill(x), random.fill(grad);
  for (int64_t i = 0; i < cols; ++i) x[marked * cols + i] = std::numeric_limits<T>::quiet_NaN();
  for (int64_t i = 0; i < rows; ++i) grad[marked * rows + i] = std::numeric_limits<T>::infinity();
  each_isa([&](const char* isa) {
    begin_case("bsr linear isolation %s %s block %dx%d batch %d", type_name<T>(), isa, int(block.r), int(block.c),
               int(batch));
    bsr_linear_forward<T>({batch, rows, cols}, x.data(), {cols, 1}, w.weight(), nullptr, y.data(), {rows, 1},
                          batch % 2 == 0, 2);
    bsr_linear_backward<T>({batch, rows, cols}, {grad.data(), {rows, 1}}, nullptr, {cols, 1}, w.weight(), dx.data(),
                           {cols, 1}, nullptr, nullptr, 2);
    expect_finite_rows(y, rows, marked, "y");
    expect_finite_rows(dx, cols, marked, "dx");
  });
}

template <class T>
void check_all() {
  int seed = 1;
  for (const Block& b : kBlocks) {
    for (const Case& c : kCases) check<T>(b, c, seed % 3 == 0, seed), ++seed;
    for (int64_t batch : kBatches) {  // whole blocks and blocks over the edge, with and without a mask
      const int64_t rows = std::max<int64_t>(24 / b.r, 2) * b.r, cols = std::max<int64_t>(30 / b.c, 2) * b.c;
      check<T>(b, {batch, rows - batch % 2 * (b.r / 2), cols - batch % 2 * (b.c / 3), .6}, batch / 2 % 2 == 1, seed++);
    }
    for (int64_t batch : {2, 3, 19}) check_isolation<T>(b, batch);
  }
  check<T>({4, 1}, {32, 6401, 280, .005}, true, seed++, 2, 3);  // bands of both gradients together
  check<T>({7, 1}, {32, 6401, 9, .1}, false, seed++, 2, 3);
  check<T>({4, 4}, {70, 3203, 30, .05}, false, seed++, 2, 3);  // bands of dw
  check<T>({16, 16}, {67, 3210, 20, .3}, true, seed++, 2, 3);
  check<T>({4, 1}, {600, 5, 2000, .01}, false, seed++, 1, 2);  // several rounds
  check<T>({4, 4}, {600, 5, 2000, .01}, true, seed++, 1, 2);
  check<T>({3, 5}, {600, 2000, 6, .01}, false, seed++, 1, 2);
}

}  // namespace

void bsr_linear_part() {
  check_all<float>();
  check_all<double>();
}

}  // namespace test
}  // namespace lth
