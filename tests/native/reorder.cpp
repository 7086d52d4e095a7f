// reorder_cluster and reorder_refine: permutations in every case, hidden groups found, and never a higher cost.
#include "reorder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "harness.h"

namespace lth {
namespace test {
namespace {

struct Items {
  Array<int64_t> offsets;
  Array<int32_t> feature, amount;

  Items(const std::vector<char>& mask, int64_t size, int64_t features)
      : offsets(size + 1), feature(std::count(mask.begin(), mask.end(), 1)), amount(feature.size()) {
    int64_t entry = 0;
    for (int64_t i = 0; i < size; ++i) {
      offsets[i] = entry;
      for (int64_t f = 0; f < features; ++f) {
        if (!mask[static_cast<size_t>(i * features + f)]) continue;
        feature[entry] = static_cast<int32_t>(f);
        amount[entry++] = 1;
      }
    }
    offsets[size] = entry;
  }
};

// What reorder_refine minimises, from its definition.
double cost(const std::vector<char>& mask, int64_t size, int64_t features, int64_t extent,
            const Array<int64_t>& order) {
  double total = 0.0;
  for (int64_t first = 0; first < size; first += extent) {
    for (int64_t f = 0; f < features; ++f) {
      int64_t n = 0;
      for (int64_t place = first; place < std::min(first + extent, size); ++place) {
        n += mask[static_cast<size_t>(order[place] * features + f)];
      }
      if (n > 0) total += 1.0 + 32.0 * (1.0 - std::exp(-4.0 * static_cast<double>(n) / static_cast<double>(extent)));
    }
  }
  return total;
}

void expect_permutation(const Array<int64_t>& order) {
  std::vector<int64_t> sorted(order.data(), order.data() + order.size());
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < order.size(); ++i) {
    if (sorted[static_cast<size_t>(i)] != i) return fail("not a permutation at %d", int(i));
  }
}

void check(int64_t size, int64_t features, int64_t extent, int64_t second, double density, int seed) {
  Random random(static_cast<uint64_t>(seed));
  begin_case("reorder %d items of %d features in %d and %d, density %g", int(size), int(features), int(extent),
             int(second), density);
  const std::vector<char> mask = random_mask(random, size, features, density);
  const Items items(mask, size, features);
  std::vector<ReorderMember> members;
  for (int64_t e : {extent, second}) {
    if (e > 0) {
      members.push_back({features, items.offsets.data(), items.feature.data(), items.amount.data(), e, 1, 1.0});
    }
  }
  constexpr int64_t kNear = 3;
  const Array<int64_t> order(size);
  const Array<int32_t> near(size * kNear);
  reorder_cluster(members, size, kNear, order.data(), near.data());
  expect_permutation(order);
  for (int64_t i = 0; i < near.size(); ++i) {
    if (near[i] < -1 || near[i] >= size || near[i] == i / kNear) return fail("near[%d] is %d", int(i), near[i]);
  }
  const auto total = [&] {
    return cost(mask, size, features, extent, order) + (second > 0 ? cost(mask, size, features, second, order) : 0.0);
  };
  std::iota(order.data(), order.data() + size, 0);
  const double before = total();
  const int64_t made = reorder_refine(members, size, kNear, near.data(), 5, static_cast<uint64_t>(seed), order.data());
  expect_permutation(order);
  const double after = total();
  if (after > before + 1e-6) fail("cost %g before, %g after", before, after);
  if (made > 0 && extent > 1 && !(after < before)) fail("%d exchanges without a gain", int(made));
}

// Items come in groups that share all features; the groups do not lie together.
void hidden_groups() {
  begin_case("reorder finds groups that share all features");
  constexpr int64_t kSize = 30, kFeatures = 50, kExtent = 5;
  std::vector<char> mask(kSize * kFeatures);
  for (int64_t i = 0; i < kSize; ++i) {
    for (int64_t f = 0; f < kFeatures; ++f) mask[static_cast<size_t>(i * kFeatures + f)] = f % 6 == i % 6;
  }
  const Items items(mask, kSize, kFeatures);
  const Array<int64_t> order(kSize);
  const Array<int32_t> near(kSize * 2);
  const std::vector<ReorderMember> members{
      {kFeatures, items.offsets.data(), items.feature.data(), items.amount.data(), kExtent, 1, 1.0}};
  reorder_cluster(members, kSize, 2, order.data(), near.data());
  expect_permutation(order);
  for (int64_t place = 0; place < kSize; ++place) {
    if (order[place] % 6 != order[place / kExtent * kExtent] % 6) fail("item %d in a strange group", int(order[place]));
  }
}

}  // namespace

void reorder_part() {
  int seed = 1;
  for (int64_t size : {0, 1, 7, 40}) {
    for (int64_t features : {0, 1, 63, 64, 65, 2100}) {  // words of 64 bits, and more than are counted at once
      for (int64_t extent : {1, 2, 5}) {
        for (int64_t second : {0, 3}) {
          for (double density : {0.0, 0.2, 1.0}) check(size, features, extent, second, density, seed++);
        }
      }
    }
  }
  hidden_groups();
}

}  // namespace test
}  // namespace lth
