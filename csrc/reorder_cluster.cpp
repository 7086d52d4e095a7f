#include <algorithm>
#include <cmath>
#include <numeric>

#include "reorder.h"

namespace lth {
namespace {

constexpr int64_t kWordBits = 64;

// Bits that two rows of words share. Portable: bytes are counted side by side, which compilers vectorize for any
// instruction set; 31 words of at most 8 to a byte do not overflow it.
int64_t shared_bits(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t total = 0;
  for (int64_t first = 0; first < words; first += 31) {
    const int64_t end = std::min(first + 31, words);
    uint64_t bytes = 0;
    for (int64_t w = first; w < end; ++w) {
      uint64_t x = a[w] & b[w];
      x -= (x >> 1) & 0x5555555555555555u;
      x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
      bytes += (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    }
    bytes = (bytes & 0x00ff00ff00ff00ffu) + ((bytes >> 8) & 0x00ff00ff00ff00ffu);
    total += static_cast<int64_t>((bytes * 0x0001000100010001u) >> 48);
  }
  return total;
}

// A member as rows of bits, with what chance makes two items share.
struct Bits {
  Bits(const ReorderMember& member, int64_t size)
      : words((member.features + kWordBits - 1) / kWordBits),
        rows(static_cast<size_t>(size * words)),
        degree(static_cast<size_t>(size)),
        weight(member.weight) {
    std::vector<double> popular(static_cast<size_t>(member.features));
    for (int64_t i = 0; i < size; ++i) {
      degree[i] = static_cast<double>(member.offsets[i + 1] - member.offsets[i]);
      for (int64_t k = member.offsets[i]; k < member.offsets[i + 1]; ++k) {
        const int64_t f = member.feature[k];
        rows[i * words + f / kWordBits] |= uint64_t(1) << (f % kWordBits);
        popular[f] += 1.0;
      }
    }
    // Items with degrees a and b that draw features by their popularity share chance * a * b of them.
    const double all = std::accumulate(popular.begin(), popular.end(), 0.0);
    double squares = 0.0;
    for (double p : popular) squares += p * p;
    chance = all > 0.0 ? squares / (all * all) : 0.0;
  }

  int64_t words;
  std::vector<uint64_t> rows;
  std::vector<double> degree;
  double weight, chance = 0.0;
};

class Likeness {
 public:
  Likeness(const std::vector<ReorderMember>& members, int64_t size) : size_(size), total_(size), scale_(size) {
    for (const ReorderMember& member : members) members_.emplace_back(member, size);
    for (int64_t i = 0; i < size; ++i) {
      for (const Bits& bits : members_) total_[i] += bits.weight * bits.degree[i];
      scale_[i] = total_[i] > 0.0 ? 1.0 / std::sqrt(total_[i]) : 0.0;
    }
  }

  double total(int64_t i) const { return total_[i]; }

  // Adds the likeness of `item` with each of `others` to `sums`, which goes by item.
  void add(int64_t item, const std::vector<int64_t>& others, std::vector<double>& sums) const {
    for (int64_t j : others) {
      double beyond = 0.0;
      for (const Bits& bits : members_) {
        const uint64_t* rows = bits.rows.data();
        const int64_t shared = shared_bits(rows + item * bits.words, rows + j * bits.words, bits.words);
        beyond += bits.weight *
                  (static_cast<double>(shared) - bits.chance * bits.degree[item] * bits.degree[j]);
      }
      sums[j] += beyond * scale_[item] * scale_[j];
    }
  }

 private:
  int64_t size_;
  std::vector<Bits> members_;
  std::vector<double> total_, scale_;
};

// Orders `items`, by falling weight, into groups of extents[level], and the items of each group by the next level.
void group(const Likeness& likeness, const std::vector<int64_t>& extents, size_t level, std::vector<int64_t> items,
           std::vector<double>& sums, int64_t* order) {
  if (level == extents.size()) {
    std::copy(items.begin(), items.end(), order);
    return;
  }
  const int64_t extent = extents[level];
  while (!items.empty()) {
    std::vector<int64_t> found{items.front()};
    items.erase(items.begin());
    for (int64_t j : items) sums[j] = 0.0;
    while (static_cast<int64_t>(found.size()) < extent && !items.empty()) {
      likeness.add(found.back(), items, sums);
      const auto best = std::max_element(items.begin(), items.end(),
                                         [&](int64_t a, int64_t b) { return sums[a] < sums[b]; });
      found.push_back(*best);
      items.erase(best);
    }
    std::sort(found.begin(), found.end(), [&](int64_t a, int64_t b) {
      return likeness.total(a) != likeness.total(b) ? likeness.total(a) > likeness.total(b) : a < b;
    });
    const int64_t count = static_cast<int64_t>(found.size());
    group(likeness, extents, level + 1, std::move(found), sums, order);
    order += count;
  }
}

}  // namespace

void reorder_cluster(const std::vector<ReorderMember>& members, int64_t size, int64_t neighbours, int64_t* order,
                     int32_t* near) {
  const Likeness likeness(members, size);
  std::vector<int64_t> items, empty;
  for (int64_t i = 0; i < size; ++i) (likeness.total(i) > 0.0 ? items : empty).push_back(i);
  std::vector<double> sums(static_cast<size_t>(size));
  std::fill(near, near + size * neighbours, -1);
  std::vector<int64_t> others;
  for (int64_t i : items) {
    for (int64_t j : items) sums[j] = 0.0;
    likeness.add(i, items, sums);
    others.clear();
    for (int64_t j : items) {
      if (j != i) others.push_back(j);
    }
    const int64_t count = std::min(neighbours, static_cast<int64_t>(others.size()));
    std::partial_sort(others.begin(), others.begin() + count, others.end(), [&](int64_t a, int64_t b) {
      return sums[a] != sums[b] ? sums[a] > sums[b] : a < b;
    });
    std::copy(others.begin(), others.begin() + count, near + i * neighbours);
  }
  std::stable_sort(items.begin(), items.end(),
                   [&](int64_t a, int64_t b) { return likeness.total(a) > likeness.total(b); });
  std::vector<int64_t> extents;
  for (const ReorderMember& member : members) {
    if (member.extent > 1) extents.push_back(member.extent);
  }
  std::sort(extents.rbegin(), extents.rend());
  extents.erase(std::unique(extents.begin(), extents.end()), extents.end());
  const int64_t live = static_cast<int64_t>(items.size());
  group(likeness, extents, 0, std::move(items), sums, order);
  std::copy(empty.begin(), empty.end(), order + live);
}

}  // namespace lth
