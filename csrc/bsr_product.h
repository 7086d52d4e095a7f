// What the BSR drivers share: one product of a block matrix with packed activations, which is the forward pass and,
// with the transposed index, the gradient of the input.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "parallel.h"
#include "strips.h"

namespace lth {

constexpr int64_t kBsrRowCost = 4;          // a row's own cost, in non-zeros: loading and storing its accumulators
constexpr int64_t kGroupBytes = 384 << 10;  // packed activations that stay in L2 while the weight passes over them
constexpr int64_t kFewRows = 4;             // block rows for each thread, below which threads also share out strips
constexpr int64_t kPrefetchBlock = 64;      // elements of a block from which on prefetching pays

// How many of the `left` rows of a block make the next panel, in strips of `tile` registers.
template <class T>
int64_t panel_of(const Kernels<T>& k, int64_t left, int64_t tile) {
  for (int64_t rows = kMaxPanel; rows > 1; rows /= 2) {
    if (rows <= left && tile <= k.bsr_tile[rows]) return rows;
  }
  return 1;
}

// Strips for a kernel that takes `rows` rows at a time: as wide as the accumulators allow, but rather narrower than
// with many empty registers in the last one.
template <class T>
Tiling tiling_of(const Kernels<T>& k, int64_t batch, int64_t rows) {
  const int64_t widest = k.bsr_tile[rows >= 4 ? 4 : (rows >= 2 ? 2 : 1)];
  const int64_t registers = ceil_div(batch, k.lanes);
  int64_t best = widest;
  for (int64_t tile = widest - 1; 2 * tile >= widest && tile > 0; --tile) {
    if (11 * round_up(registers, best) > 12 * round_up(registers, tile)) best = tile;
  }
  return Tiling(batch, k.lanes, best);
}

// One product of a block matrix with packed activations: forward with the index as it is, dX with the transposed one.
template <class T>
struct Product {
  int64_t rows, out_block, in_block;  // features of the result, rows and columns of a block as this product sees it
  const int32_t* pointers;            // [block rows + 1]
  const int32_t* index;
  const int32_t* position;  // null: blocks are stored in this order
  const T* values;
  int64_t row_stride, column_stride;
  const T* bias;  // of whole block rows, or null
  T* out;
  Strides strides;
  bool relu = false;

  int64_t block_rows() const { return ceil_div(rows, out_block); }
  int64_t chunk() const { return std::max<int64_t>(1, kChunk / out_block); }  // block rows computed between unpackings
  int64_t row_cost() const { return ceil_div(kBsrRowCost, in_block); }
  int64_t weight() const { return pointers[block_rows()] + row_cost() * block_rows(); }

  // How much of a block to fetch ahead while its panel from row `done` on is computed: blocks of several cache lines,
  // which no hardware foresees in this order, and only where they come from a far cache.
  int64_t prefetch(int64_t strip, int64_t done, int64_t panel) const {
    if (strip > 0 || out_block * in_block < kPrefetchBlock) return 0;
    if (column_stride == 1) return panel * in_block;
    return done == 0 ? out_block * in_block : 0;
  }

  // Block rows `range` of strips [first, first + strips): `packed` holds those strips of the input, strip_size apart,
  // `buffer` a chunk of the output. Strip after strip for each chunk of rows, whose weights then stay in a near cache.
  void run(const Kernels<T>& k, const Tiling& t, const T* packed, int64_t strip_size, int64_t batch, int64_t first,
           int64_t strips, Range range, T* buffer) const {
    const auto& spmm = k.template indexed<int32_t>().bsr_spmm;
    for (int64_t b = range.begin; b < range.end; b += chunk()) {
      const int64_t count = std::min(chunk(), range.end - b);
      for (int64_t strip = 0; strip < strips; ++strip) {
        // Blocks of several panels row by row: the second panel then finds its weights in L1.
        const int64_t at_once = panel_of(k, out_block, t.tile) == out_block ? count : 1;
        for (int64_t p = 0; p < count; p += at_once) {
          const int32_t* const begin = pointers + b + p;
          T* const to = buffer + p * out_block * t.lanes;
          for (int64_t done = 0; done < out_block;) {
            const int64_t panel = panel_of(k, out_block - done, t.tile);
            spmm[panel][t.tile]({packed + strip * strip_size, index, in_block * t.lanes, in_block, t.lanes,
                                 values + done * row_stride, position, out_block * in_block, row_stride, column_stride,
                                 prefetch(strip, done, panel), begin, begin + 1, at_once, out_block,
                                 bias == nullptr ? nullptr : bias + (b + p) * out_block + done, false,
                                 to + done * t.lanes, t.lanes, relu});
            done += panel;
          }
        }
        const int64_t start = b * out_block, stop = std::min(rows, start + count * out_block);
        for (int64_t i = start; i < stop; i += kChunk) {
          unpack(k, buffer + (i - start) * t.lanes, std::min(kChunk, stop - i), out, strides, batch, t, first + strip,
                 i);
        }
      }
    }
  }

  // This thread's share of all strips of a round, taken by groups.
  void share_of(const Kernels<T>& k, const Tiling& t, const T* packed, int64_t strip_size, int64_t batch, int64_t first,
                int64_t strips, T* buffer, int thread, int team) const {
    const int64_t align = std::max<int64_t>(1, cut_alignment(rows, team) / out_block);
    const int64_t strip_bytes = std::max<int64_t>(1, strip_size * static_cast<int64_t>(sizeof(T)));
    int64_t group = std::max<int64_t>(1, kGroupBytes / strip_bytes);
    if (strips % team == 0) {  // groups that can be dealt out, as is_dealt promises
      const int64_t each = strips / team;
      for (group = std::min(group, each); each % group != 0;) --group;
    } else if (block_rows() < kFewRows * team) {
      group = std::min(group, ceil_div(strips, team));
    }
    const Range mine = share(ceil_div(strips, group) * weight(), thread, team);
    for (int64_t g = mine.begin / weight(); g * weight() < mine.end; ++g) {
      const auto cut = [&](int64_t at) {
        return row_at(pointers, block_rows(), row_cost(), std::min(at - g * weight(), weight()), align);
      };
      const Range range{mine.begin <= g * weight() ? 0 : cut(mine.begin), cut(mine.end)};
      const int64_t strip = g * group;
      run(k, t, packed + strip * strip_size, strip_size, batch, first + strip, std::min(group, strips - strip), range,
          buffer);
    }
  }
};

// A thread's share of `values` with zeros where the mask has them.
template <class T>
void mask_share(const T* values, const uint8_t* mask, int64_t count, T* masked, int thread, int team) {
  const Range mine = share(count, thread, team);
  for (int64_t i = mine.begin; i < mine.end; ++i) masked[i] = mask[i] != 0 ? values[i] : T(0);
}

// Multiply-adds of one product.
inline double work_of(int64_t weights, int64_t features, const Tiling& t) {
  return (static_cast<double>(weights) + static_cast<double>(kBsrRowCost * features)) *
         static_cast<double>(t.lanes * t.strips);
}

}  // namespace lth
