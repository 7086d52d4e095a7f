// One axis of a sparse matrix put in an order in which its blocks are few and full.
//
// What is permuted are `size` items: the rows of a mask, or its columns, or channels that are rows of one tensor and
// columns of another. Each tensor is a member: a sparse matrix [size, features] of counts, of which `extent`
// consecutive items make a block row. The order is found in two steps: like items are put together, and then items
// change places as long as that makes the blocks fewer or fuller.
#pragma once

#include <cstdint>
#include <vector>

namespace lth {

// The items of one tensor, compressed by items. Features ascend within an item.
struct ReorderMember {
  int64_t features;
  const int64_t* offsets;  // [size + 1]
  const int32_t* feature;  // [offsets[size]], in [0, features)
  const int32_t* amount;   // likewise: live weights that the item has in this feature, from 1 to `width`
  int64_t extent;          // items in a block
  int64_t width;           // a full block counts extent * width
  double weight;           // what a block costs
};

// Greedy groups of like items. Likeness is the shared features beyond what chance explains, over the root of both
// items' numbers of features. The heaviest item left starts a group, which takes the item most like all it has until it
// is full; a group of the largest extent is divided into groups of the next one likewise. Items without a feature come
// last.
//
// order: [size], the item at each place. near: [size * neighbours], the items most like each, best first; -1 where
// there are fewer.
void reorder_cluster(const std::vector<ReorderMember>& members, int64_t size, int64_t neighbours, int64_t* order,
                     int32_t* near);

// Exchanges places in `order` while that lowers the sum over members, block rows and features of
//
//   weight * ([n > 0] + 32 (1 - exp(-4 n / (extent * width)))),     n the live weights in the block.
//
// The first term counts live blocks. The second tells full ones from those that a stray weight keeps alive: for those
// it is nearly linear, and so indifferent, and it rewards bringing weights together where all blocks are alive.
// Tried are the places around the items in `near`, as made by reorder_cluster, and a few drawn at random.
//
// Returns how many exchanges were made, in at most `sweeps` rounds over all items.
int64_t reorder_refine(const std::vector<ReorderMember>& members, int64_t size, int64_t neighbours,
                       const int32_t* near, int64_t sweeps, uint64_t seed, int64_t* order);

}  // namespace lth
