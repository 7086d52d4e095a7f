#include <algorithm>
#include <cmath>

#include "reorder.h"

namespace lth {
namespace {

// How much more a full block's being full counts than a block's being alive: so much that a row is not taken from its
// full blocks to save blocks of stray weights. On masks without full blocks it costs a hundredth of the live blocks.
constexpr double kFullness = 32.0;
// Exchanges that gain less than this are rounding.
constexpr double kLeast = 1e-9;
// Places drawn at random for each item and sweep.
constexpr int kDraws = 2;
// A sweep that makes fewer exchanges than one for so many items is the last.
constexpr int64_t kStale = 500;

// splitmix64 (Steele, Lea, Flood 2014): the same numbers on every platform, unlike those of <random>'s distributions.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  int64_t below(int64_t limit) {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<int64_t>((z ^ (z >> 31)) % static_cast<uint64_t>(limit));
  }

 private:
  uint64_t state_;
};

// One member under the present order: how many live weights each block has, and what that costs.
class Blocks {
 public:
  Blocks(const ReorderMember& member, int64_t size, const int64_t* order) : member_(member) {
    const int64_t rows = (size + member.extent - 1) / member.extent, area = member.extent * member.width;
    counts_.resize(static_cast<size_t>(rows * member.features));
    cost_.resize(static_cast<size_t>(area + 1));
    for (int64_t n = 1; n <= area; ++n) {
      const double full = 1.0 - std::exp(-4.0 * static_cast<double>(n) / static_cast<double>(area));
      cost_[n] = member.weight * (1.0 + kFullness * full);
    }
    for (int64_t place = 0; place < size; ++place) move(order[place], place, 1);
  }

  int64_t extent() const { return member_.extent; }

  // What the blocks of the place's row would cost more with `item` in it, too.
  double joining(int64_t item, int64_t place) const { return change(item, place, 1); }
  // What they would cost less without it.
  double leaving(int64_t item, int64_t place) const { return -change(item, place, -1); }

  // What exchanging the items at two places would add to the cost.
  double exchange(int64_t a, int64_t place_a, int64_t b, int64_t place_b) const {
    const int64_t row_a = place_a / member_.extent, row_b = place_b / member_.extent;
    if (row_a == row_b) return 0.0;
    const int32_t* in_a = counts_.data() + row_a * member_.features;
    const int32_t* in_b = counts_.data() + row_b * member_.features;
    const int64_t end_a = member_.offsets[a + 1], end_b = member_.offsets[b + 1];
    int64_t i = member_.offsets[a], j = member_.offsets[b];
    double added = 0.0;
    while (i < end_a || j < end_b) {
      const int32_t from_a = i < end_a ? member_.feature[i] : INT32_MAX;
      const int32_t from_b = j < end_b ? member_.feature[j] : INT32_MAX;
      const int32_t f = std::min(from_a, from_b);
      int32_t moved = 0;
      if (from_a == f) moved += member_.amount[i++];
      if (from_b == f) moved -= member_.amount[j++];
      if (moved == 0) continue;
      added += cost_[in_a[f] - moved] - cost_[in_a[f]] + cost_[in_b[f] + moved] - cost_[in_b[f]];
    }
    return added;
  }

  void move(int64_t item, int64_t place, int32_t sign) {
    int32_t* row = counts_.data() + place / member_.extent * member_.features;
    for (int64_t k = member_.offsets[item]; k < member_.offsets[item + 1]; ++k) {
      row[member_.feature[k]] += sign * member_.amount[k];
    }
  }

 private:
  double change(int64_t item, int64_t place, int32_t sign) const {
    const int32_t* row = counts_.data() + place / member_.extent * member_.features;
    double added = 0.0;
    for (int64_t k = member_.offsets[item]; k < member_.offsets[item + 1]; ++k) {
      // A full row has no room for the item before another one leaves.
      const int64_t there = row[member_.feature[k]];
      const int64_t then = std::min<int64_t>(there + sign * member_.amount[k], static_cast<int64_t>(cost_.size()) - 1);
      added += cost_[then] - cost_[there];
    }
    return added;
  }

  ReorderMember member_;
  std::vector<int32_t> counts_;  // [block rows, features]
  std::vector<double> cost_;     // by live weights in a block
};

class Refinement {
 public:
  Refinement(const std::vector<ReorderMember>& members, int64_t size, int64_t* order)
      : size_(size), order_(order), place_(size) {
    for (const ReorderMember& member : members) {
      if (member.extent > 1) blocks_.emplace_back(member, size, order);  // single items: their order is all the same
    }
    for (int64_t place = 0; place < size; ++place) place_[order[place]] = place;
  }

  int64_t place_of(int64_t item) const { return place_[item]; }

  // Exchanges `item` with the best partner among those that share a block row with `place`, if that gains anything.
  bool try_around(int64_t item, int64_t place) {
    const int64_t own = place_[item];
    double best = -kLeast;
    int64_t partner = -1;
    for (const Blocks& blocks : blocks_) {
      const int64_t row = place / blocks.extent();
      if (row == own / blocks.extent()) continue;
      const int64_t first = row * blocks.extent(), end = std::min(first + blocks.extent(), size_);
      if (end - first == blocks.extent() && blocks.joining(item, place) >= blocks.leaving(item, own)) continue;
      for (int64_t other = first; other < end; ++other) {
        const double added = exchange(own, other);
        if (added < best) {
          best = added;
          partner = other;
        }
      }
    }
    if (partner >= 0) apply(own, partner);
    return partner >= 0;
  }

  // Exchanges the items at two places if that gains anything.
  bool try_places(int64_t a, int64_t b) {
    if (exchange(a, b) >= -kLeast) return false;
    apply(a, b);
    return true;
  }

 private:
  double exchange(int64_t a, int64_t b) const {
    double added = 0.0;
    for (const Blocks& blocks : blocks_) added += blocks.exchange(order_[a], a, order_[b], b);
    return added;
  }

  void apply(int64_t a, int64_t b) {
    for (Blocks& blocks : blocks_) {
      blocks.move(order_[a], a, -1);
      blocks.move(order_[b], b, -1);
      blocks.move(order_[a], b, 1);
      blocks.move(order_[b], a, 1);
    }
    std::swap(order_[a], order_[b]);
    place_[order_[a]] = a;
    place_[order_[b]] = b;
  }

  int64_t size_;
  int64_t* order_;
  std::vector<int64_t> place_;
  std::vector<Blocks> blocks_;
};

}  // namespace

int64_t reorder_refine(const std::vector<ReorderMember>& members, int64_t size, int64_t neighbours,
                       const int32_t* near, int64_t sweeps, uint64_t seed, int64_t* order) {
  Refinement refinement(members, size, order);
  Random random(seed);
  int64_t total = 0;
  for (int64_t sweep = 0; sweep < sweeps; ++sweep) {
    int64_t made = 0;
    for (int64_t item = 0; item < size; ++item) {
      for (int64_t k = 0; k < neighbours && near[item * neighbours + k] >= 0; ++k) {
        made += refinement.try_around(item, refinement.place_of(near[item * neighbours + k]));
      }
      for (int draw = 0; draw < kDraws; ++draw) {
        made += refinement.try_places(refinement.place_of(item), random.below(size));
      }
    }
    total += made;
    if (made <= size / kStale) break;
  }
  return total;
}

}  // namespace lth
