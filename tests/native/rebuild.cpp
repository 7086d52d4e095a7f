// csr_rebuild: both index types, empty to full, against the index made from the new mask; and what it refuses.
#include "csr_rebuild.h"

#include <stdexcept>
#include <utility>

#include "harness.h"

namespace lth {
namespace test {
namespace {

template <class Index>
struct Outputs {
  Outputs(int64_t rows, int64_t cols, int64_t nnz)
      : crow(rows + 1), ccol(cols + 1), perm(nnz), source(nnz), col(nnz), row(nnz) {}
  CsrRebuilt<Index> pointers() const {
    return {crow.data(), col.data(), ccol.data(), row.data(), perm.data(), source.data()};
  }
  Array<int32_t> crow, ccol, perm, source;
  Array<Index> col, row;
};

template <class Index>
void check(int64_t rows, int64_t cols, double before_density, double keep_density, double grow_density, int seed) {
  Random random(static_cast<uint64_t>(seed));
  const auto coin = [&](double density) { return 0.5 * (random.uniform() + 1.0) < density; };
  const std::vector<char> before = random_mask(random, rows, cols, before_density);
  std::vector<char> after(before.size());
  std::vector<char> keep;
  std::vector<int64_t> grown;
  std::vector<int32_t> source;
  for (size_t i = 0; i < before.size(); ++i) {
    const bool stays = before[i] && coin(keep_density), comes = !stays && coin(grow_density);
    if (stays) source.push_back(static_cast<int32_t>(keep.size()));
    if (comes) {
      source.push_back(-1);
      grown.push_back(static_cast<int64_t>(i));
    }
    if (before[i]) keep.push_back(stays);
    after[i] = stays || comes;
  }
  begin_case("rebuild %s %d x %d densities %g %g %g", type_name<Index>(), int(rows), int(cols), before_density,
             keep_density, grow_density);
  const auto old = Csr<Index>::of(before, rows, cols), right = Csr<Index>::of(after, rows, cols);
  const Array<uint8_t> flags(keep);
  const Array<int64_t> positions(grown);
  const Outputs<Index> found(rows, cols, right.nnz);
  csr_rebuild<Index>({rows, cols, old.nnz, old.crow.data(), old.col.data(), flags.data(),
                      right.nnz - static_cast<int64_t>(grown.size()), positions.data(), positions.size()},
                     found.pointers());
  expect_same(found.crow, right.crow, "crow");
  expect_same(found.col, right.col, "col");
  expect_same(found.ccol, right.ccol, "ccol");
  expect_same(found.row, right.row, "row");
  expect_same(found.perm, right.perm, "perm");
  expect_same(found.source, Array<int32_t>(source), "source");
}

// A 2 x 3 matrix with entries (0, 0), (0, 2), (1, 1), of which the second goes; every change of it here is refused.
void refused(std::vector<int32_t> crow, std::vector<int32_t> col, int64_t kept, std::vector<int64_t> grown) {
  begin_case("rebuild refuses crow[1] %d col[1] %d kept %d grown[0] %d", crow[1], col[1], int(kept), int(grown[0]));
  const Array<int32_t> crows(crow), cols(col);
  const Array<uint8_t> keep(std::vector<int>{1, 0, 1});
  const Array<int64_t> positions(grown);
  const Outputs<int32_t> out(2, 3, kept + positions.size());
  try {
    csr_rebuild<int32_t>(
        {2, 3, 3, crows.data(), cols.data(), keep.data(), kept, positions.data(), positions.size()}, out.pointers());
    fail("no exception");
  } catch (const std::invalid_argument&) {
  }
}

}  // namespace

void rebuild_part() {
  int seed = 1;
  const std::pair<int64_t, int64_t> sizes[] = {{0, 0}, {0, 5}, {5, 0}, {1, 1}, {7, 1}, {1, 9}, {17, 33}};
  for (const auto& [rows, cols] : sizes) {
    for (double before : {0.0, 0.3, 1.0}) {
      for (double keep : {0.0, 0.6, 1.0}) {
        for (double grow : {0.0, 0.2, 1.0}) {
          check<uint16_t>(rows, cols, before, keep, grow, seed);
          check<int32_t>(rows, cols, before, keep, grow, seed++);
        }
      }
    }
  }
  refused({1, 2, 3}, {0, 2, 1}, 2, {1});
  refused({0, 4, 3}, {0, 2, 1}, 2, {1});
  refused({0, 2, 3}, {2, 0, 1}, 2, {1});
  refused({0, 2, 3}, {0, 3, 1}, 2, {1});
  refused({0, 2, 3}, {0, 2, 1}, 1, {1});
  refused({0, 2, 3}, {0, 2, 1}, 2, {4});
  refused({0, 2, 3}, {0, 2, 1}, 2, {6});
  refused({0, 2, 3}, {0, 2, 1}, 2, {1, 1});
}

}  // namespace test
}  // namespace lth
