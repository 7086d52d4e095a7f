// A block-sparse matrix for the checks of BSR drivers.
#pragma once

#include "bsr_linear.h"
#include "harness.h"
#include "parallel.h"

namespace lth {
namespace test {

// `masked`: some entries of the stored blocks, and all beyond the edge of the matrix, are not live and hold NaN;
// otherwise entries beyond the edge hold numbers.
template <class T>
struct Blocks {
  int64_t rows, cols, r, c;
  bool masked;
  Csr<int32_t> index;
  Array<T> values;
  Array<uint8_t> mask;

  Blocks(Random& random, int64_t height, int64_t width, int64_t block_r, int64_t block_c, double density,
         bool with_mask)
      : rows(height),
        cols(width),
        r(block_r),
        c(block_c),
        masked(with_mask),
        index(Csr<int32_t>::of(random_mask(random, ceil_div(rows, r), ceil_div(cols, c), density), ceil_div(rows, r),
                               ceil_div(cols, c))),
        values(index.nnz * r * c),
        mask(masked ? values.size() : 0) {
    random.fill(values);
    if (!masked) return;
    for (int64_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(random.below(4) > 0);
    each([&](int64_t at, int64_t row, int64_t col) {
      if (row >= rows || col >= cols) mask[at] = 0;
      if (!mask[at]) values[at] = std::numeric_limits<T>::quiet_NaN();
    });
  }

  BsrWeight<T> weight() const {
    return {r, c, values.data(), masked ? mask.data() : nullptr, index.crow.data(), index.col.data(),
            index.ccol.data(), index.row.data(), index.perm.data()};
  }

  // Calls body(where in values, row, column) for every stored entry.
  template <class Body>
  void each(Body&& body) const {
    for (int64_t b = 0; b < index.rows; ++b) {
      for (int64_t k = index.crow[b]; k < index.crow[b + 1]; ++k) {
        for (int64_t i = 0; i < r * c; ++i) body(k * r * c + i, b * r + i / c, index.col[k] * c + i % c);
      }
    }
  }

  // The same for those that count.
  template <class Body>
  void each_live(Body&& body) const {
    each([&](int64_t at, int64_t row, int64_t col) {
      if (row < rows && col < cols && (!masked || mask[at])) body(at, row, col);
    });
  }
};

}  // namespace test
}  // namespace lth
