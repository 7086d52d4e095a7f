// Forward: pack x, then bsr_spmm over this thread's block rows in every strip, unpacking y as it appears.
//
// Backward, blocks of few columns (fused): pack dy and x, then both gradients column by column through the transposed
// index, as in csr_linear, four rows of a block at a time.
// Backward, blocks of several columns (split): here dX is a forward pass through the transposed index, columns of a
// block for its rows, and dW an outer product for each block over many strips: each reads a strip for several columns.
#include "bsr_linear.h"

#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kRowCost = 4;           // a row's own cost, in non-zeros: loading and storing its accumulators
constexpr int64_t kQuad = 4;              // rows that the fused backward pass takes at a time
constexpr int64_t kSplitColumns = 4;      // columns of a block from which on dX and dW are computed apart
constexpr int64_t kOuterRows = 16;        // rows of a block whose dy stay in L1 during an outer product,
constexpr int64_t kOuterBytes = 24 << 10;  // and the bytes of them, over several strips

// How many of the `left` rows of a block make the next panel, in strips of `tile` registers.
template <class T>
int64_t panel_of(const Kernels<T>& k, int64_t left, int64_t tile) {
  for (int64_t rows = kMaxPanel; rows > 1; rows /= 2) {
    if (rows <= left && tile <= k.bsr_tile[rows]) return rows;
  }
  return 1;
}

// Strips for a kernel that takes `rows` rows at a time: as wide as the accumulators allow, but rather narrower than
// with empty registers in the last one.
template <class T>
Tiling tiling_of(const Kernels<T>& k, int64_t batch, int64_t rows) {
  const int64_t widest = k.bsr_tile[rows >= 4 ? 4 : (rows >= 2 ? 2 : 1)];
  const int64_t registers = ceil_div(batch, k.lanes);
  int64_t best = widest;
  for (int64_t tile = widest - 1; 2 * tile >= widest && tile > 0; --tile) {
    if (round_up(registers, tile) < round_up(registers, best)) best = tile;
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

  int64_t block_rows() const { return ceil_div(rows, out_block); }
  int64_t chunk() const { return std::max<int64_t>(1, kChunk / out_block); }  // block rows computed between unpackings
  int64_t row_cost() const { return ceil_div(kRowCost, in_block); }
  int64_t weight() const { return pointers[block_rows()] + row_cost() * block_rows(); }

  // Block rows [begin, end) of one strip: `packed` is that strip of the input, `buffer` holds a chunk of the output.
  void run(const Kernels<T>& k, const Tiling& t, const T* packed, int64_t batch, int64_t strip, Range range,
           T* buffer) const {
    const auto& spmm = k.template indexed<int32_t>().bsr_spmm;
    for (int64_t b = range.begin; b < range.end; b += chunk()) {
      const int64_t count = std::min(chunk(), range.end - b);
      for (int64_t done = 0; done < out_block;) {
        const int64_t panel = panel_of(k, out_block - done, t.tile);
        spmm[panel][t.tile]({packed, index, in_block * t.lanes, in_block, t.lanes, values + done * row_stride, position,
                             out_block * in_block, row_stride, column_stride, pointers + b, pointers + b + 1, count,
                             out_block, bias == nullptr ? nullptr : bias + b * out_block + done, false,
                             buffer + done * t.lanes, t.lanes});
        done += panel;
      }
      const int64_t first = b * out_block, stop = std::min(rows, first + count * out_block);
      for (int64_t i = first; i < stop; i += kChunk) {
        unpack(k, buffer + (i - first) * t.lanes, std::min(kChunk, stop - i), out, strides, batch, t, strip, i);
      }
    }
  }

  // This thread's share of all strips of a round.
  void share_of(const Kernels<T>& k, const Tiling& t, const T* packed, int64_t strip_size, int64_t batch, int64_t first,
                int64_t strips, T* buffer, int thread, int team) const {
    const int64_t align = std::max<int64_t>(1, cut_alignment(rows, team) / out_block);
    const Range mine = share(strips * weight(), thread, team);
    for (int64_t strip = mine.begin / weight(); strip * weight() < mine.end; ++strip) {
      const auto cut = [&](int64_t at) {
        return row_at(pointers, block_rows(), row_cost(), std::min(at - strip * weight(), weight()), align);
      };
      const Range range{mine.begin <= strip * weight() ? 0 : cut(mine.begin), cut(mine.end)};
      run(k, t, packed + strip * strip_size, batch, first + strip, range, buffer);
    }
  }
};

// A thread's share of `values` with zeros where the mask has them.
template <class T>
void mask_share(const T* values, const uint8_t* mask, int64_t count, T* masked, int thread, int team) {
  const Range mine = share(count, thread, team);
  for (int64_t i = mine.begin; i < mine.end; ++i) masked[i] = mask[i] != 0 ? values[i] : T(0);
}

// Sums of a thread's share of the features of packed strips, added to what earlier rounds found.
template <class T>
void sum_share(const Kernels<T>& k, const T* packed, int64_t strip_size, int64_t strips, int64_t lanes, int64_t rows,
               bool accumulate, T* sums, int thread, int team) {
  const Range mine = share(rows, thread, team);
  for (int64_t r = mine.begin; r < mine.end; ++r) {
    T total = accumulate ? sums[r] : T(0);
    for (int64_t strip = 0; strip < strips; ++strip) total += k.sum(packed + strip * strip_size + r * lanes, lanes);
    sums[r] = total;
  }
}

double work_of(int64_t weights, int64_t features, const Tiling& t) {
  return (static_cast<double>(weights) + static_cast<double>(kRowCost * features)) *
         static_cast<double>(t.lanes * t.strips);
}

// The columns of the weight with their blocks cut into entries of four rows, and of one for what is left over.
struct Columns {
  int64_t r, c, quads, singles;  // of a column of a block
  const int32_t* ccol;

  Columns(int64_t rows, int64_t columns, const int32_t* pointers)
      : r(rows), c(columns), quads(rows / kQuad), singles(rows % kQuad), ccol(pointers) {}

  // Where the entries of column `column` begin, if a block has `each` of them in a column.
  int64_t begin(int64_t column, int64_t each) const {
    const int64_t block = column / c;
    if (column % c == 0) return each * c * ccol[block];
    return each * (c * ccol[block] + column % c * (ccol[block + 1] - ccol[block]));
  }
};

}  // namespace

template <class T>
void bsr_linear_forward(const LinearSizes& sizes, const T* x, Strides xs, const BsrWeight<T>& w, const T* bias, T* y,
                        Strides ys, int threads) {
  if (sizes.batch == 0 || sizes.rows == 0) return;
  const Kernels<T>& k = kernels<T>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), padded_cols = round_up(sizes.cols, w.c);
  const int64_t weights = w.crow[padded_rows / w.r] * w.r * w.c;
  const Tiling t = tiling_of(k, sizes.batch, w.r);
  threads = useful_threads(threads, work_of(weights, sizes.rows, t));
  const int64_t round = strips_per_round(t, padded_cols, sizeof(T), threads), strip_size = padded_cols * t.lanes;
  const bool pad_bias = bias != nullptr && padded_rows > sizes.rows;

  Product<T> product{sizes.rows, w.r, w.c, w.crow, w.col, nullptr, w.values, w.c, 1, bias, y, ys};
  Plan plan;
  const size_t packed_at = plan.add<T>(round * strip_size);
  const size_t out_at = plan.add<T>(product.chunk() * w.r * t.lanes, threads);
  const size_t values_at = plan.add<T>(w.mask != nullptr ? weights : 0);
  const size_t bias_at = plan.add<T>(pad_bias ? padded_rows : 0);
  const Scratch scratch(plan);
  T* const packed = scratch.at<T>(packed_at);
  if (w.mask != nullptr) product.values = scratch.at<T>(values_at);
  if (pad_bias) {
    std::memcpy(scratch.at<T>(bias_at), bias, static_cast<size_t>(sizes.rows) * sizeof(T));
    std::fill(scratch.at<T>(bias_at) + sizes.rows, scratch.at<T>(bias_at) + padded_rows, T(0));
    product.bias = scratch.at<T>(bias_at);
  }

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, product.chunk() * w.r * t.lanes, thread);
    if (w.mask != nullptr) mask_share(w.values, w.mask, weights, scratch.at<T>(values_at), thread, team);
    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0) barrier(team);
      pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed, thread, team, padded_cols);
      barrier(team);
      product.share_of(k, t, packed, strip_size, sizes.batch, first, strips, out, thread, team);
    }
  });
}

namespace {

// Both gradients together, or dW alone, for blocks of few columns.
template <class T>
void backward_fused(const LinearSizes& sizes, const T* grad, Strides gs, const T* x, Strides xs, const BsrWeight<T>& w,
                    T* dx, Strides dxs, T* dvalues, T* dbias, int threads) {
  const Kernels<T>& k = kernels<T>();
  const auto& ops = k.template indexed<int32_t>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), block_cols = ceil_div(sizes.cols, w.c);
  const int64_t blocks = w.ccol[block_cols], padded_cols = block_cols * w.c, weights = blocks * w.r * w.c;
  const Tiling t(sizes.batch, k.lanes, k.backward_tile);
  threads = useful_threads(threads, 2 * work_of(weights, sizes.cols, t));
  const int64_t round = strips_per_round(t, padded_rows + padded_cols, sizeof(T), threads);
  const int64_t grad_size = padded_rows * t.lanes, x_size = padded_cols * t.lanes;

  const Columns columns(w.r, w.c, w.ccol);
  const int64_t quads = columns.quads * w.c * blocks, singles = columns.singles * w.c * blocks;
  Plan plan;
  const size_t grad_at = plan.add<T>(round * grad_size);
  const size_t x_at = plan.add<T>(round * x_size);
  const size_t values_at = plan.add<T>(weights);
  const size_t dvalues_at = plan.add<T>(weights);
  const size_t offset_at = plan.add<int32_t>(quads + singles);
  const size_t begin_at = plan.add<int32_t>(2 * (padded_cols + 1));
  const size_t out_at = plan.add<T>(kChunk * t.lanes, threads);
  const Scratch scratch(plan);
  T* const packed_grad = scratch.at<T>(grad_at);
  T* const packed_x = scratch.at<T>(x_at);
  // First the values of entries of four rows, then those of single rows; so do their gradients and their offsets.
  T* const by_column = scratch.at<T>(values_at);
  T* const dby_column = scratch.at<T>(dvalues_at);
  int32_t* const offsets = scratch.at<int32_t>(offset_at);
  int32_t* const begin = scratch.at<int32_t>(begin_at);
  int32_t* const single_begin = begin + padded_cols + 1;

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, kChunk * t.lanes, thread);
    // This thread's alone, in every strip: nobody else adds to their dw.
    const int64_t row_cost = ceil_div(kRowCost, w.r), weight = blocks + row_cost * block_cols;
    const int64_t align = std::max<int64_t>(1, cut_alignment(sizes.cols, team) / w.c);
    const auto cut = [&](int part) { return row_at(w.ccol, block_cols, row_cost, weight * part / team, align); };
    const Range mine{cut(thread), cut(thread + 1)};
    const Range real{mine.begin * w.c, std::min(sizes.cols, mine.end * w.c)};
    // body(value among those stored, value by column) for all values of this thread.
    const auto each_value = [&](auto&& body) {
      for (int64_t b = mine.begin; b < mine.end; ++b) {
        for (int64_t j = 0; j < w.c; ++j) {
          int64_t quad = columns.begin(b * w.c + j, columns.quads) * kQuad;
          int64_t single = quads * kQuad + columns.begin(b * w.c + j, columns.singles);
          for (int64_t i = w.ccol[b]; i < w.ccol[b + 1]; ++i) {
            const int64_t block = static_cast<int64_t>(w.perm[i]) * w.r * w.c + j;
            for (int64_t row = 0; row < columns.quads * kQuad; ++row) body(block + row * w.c, quad++);
            for (int64_t row = columns.quads * kQuad; row < w.r; ++row) body(block + row * w.c, single++);
          }
        }
      }
    };
    for (int64_t column = mine.begin * w.c; column < mine.end * w.c; ++column) {
      begin[column] = static_cast<int32_t>(columns.begin(column, columns.quads));
      single_begin[column] = static_cast<int32_t>(columns.begin(column, columns.singles));
      int32_t* quad = offsets + begin[column];
      int32_t* single = offsets + quads + single_begin[column];
      for (int64_t i = w.ccol[column / w.c]; i < w.ccol[column / w.c + 1]; ++i) {
        const int32_t row = w.row[i] * static_cast<int32_t>(w.r);
        for (int64_t q = 0; q < columns.quads; ++q) *quad++ = row + static_cast<int32_t>(q * kQuad);
        for (int64_t q = columns.quads * kQuad; q < w.r; ++q) *single++ = row + static_cast<int32_t>(q);
      }
    }
    if (thread == team - 1) {
      begin[padded_cols] = static_cast<int32_t>(quads);
      single_begin[padded_cols] = static_cast<int32_t>(singles);
    }
    each_value([&](int64_t stored, int64_t at) {
      by_column[at] = w.mask == nullptr || w.mask[stored] != 0 ? w.values[stored] : T(0);
      dby_column[at] = T(0);
    });

    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0) barrier(team);
      pack_share(k, grad, gs, sizes.batch, t, first, strips, sizes.rows, packed_grad, thread, team, padded_rows);
      pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed_x, thread, team, padded_cols);
      barrier(team);
      if (dbias != nullptr)
        sum_share(k, packed_grad, grad_size, strips, t.lanes, sizes.rows, first > 0, dbias, thread, team);
      for (int64_t strip = 0; strip < strips; ++strip) {
        const T* const g = packed_grad + strip * grad_size;
        for (int64_t c = mine.begin * w.c; c < mine.end * w.c; c += kChunk) {
          const int64_t count = std::min(kChunk, mine.end * w.c - c);
          const T* const xc = packed_x + strip * x_size + c * t.lanes;
          if (columns.quads > 0 || columns.singles == 0) {
            const auto& op = dx != nullptr ? ops.bsr_backward : ops.bsr_sddmm;
            op[kQuad][t.tile]({xc, t.lanes, g, offsets, t.lanes, t.lanes, by_column, begin + c, begin + c + 1, count,
                               false, out, t.lanes, dby_column});
          }
          if (columns.singles > 0) {
            (dx != nullptr ? ops.backward : ops.sddmm)[t.tile](
                {xc, t.lanes, g, offsets + quads, t.lanes, by_column + quads * kQuad, single_begin + c,
                 single_begin + c + 1, count, columns.quads > 0, out, t.lanes, dby_column + quads * kQuad});
          }
          if (dx != nullptr && c < real.end)
            unpack(k, out, std::min(count, real.end - c), dx, dxs, sizes.batch, t, first + strip, c);
        }
      }
    }
    each_value([&](int64_t stored, int64_t at) {
      dvalues[stored] = w.mask == nullptr || w.mask[stored] != 0 ? dby_column[at] : T(0);
    });
  });
}

// dX alone, or dX and dW apart, for blocks of several columns.
template <class T>
void backward_split(const LinearSizes& sizes, const T* grad, Strides gs, const T* x, Strides xs, const BsrWeight<T>& w,
                    T* dx, Strides dxs, T* dvalues, T* dbias, int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), block_cols = ceil_div(sizes.cols, w.c);
  const int64_t blocks = w.ccol[block_cols], padded_cols = block_cols * w.c, weights = blocks * w.r * w.c;
  const bool dw = dvalues != nullptr, masked = w.mask != nullptr && dx != nullptr;
  const Tiling t = tiling_of(k, sizes.batch, w.c);
  threads = useful_threads(threads, 2 * work_of(weights, sizes.cols, t));
  const int64_t round = strips_per_round(t, padded_rows + (dw ? padded_cols : 0), sizeof(T), threads);
  const int64_t grad_size = padded_rows * t.lanes, x_size = padded_cols * t.lanes;
  const int64_t outer_rows = std::min(w.r, kOuterRows);
  const int64_t outer_strips =
      std::max<int64_t>(1, kOuterBytes / (outer_rows * t.lanes * static_cast<int64_t>(sizeof(T))));

  Product<T> product{sizes.cols, w.c, w.r, w.ccol, w.row, w.perm, w.values, 1, w.c, nullptr, dx, dxs};
  Plan plan;
  const size_t grad_at = plan.add<T>(round * grad_size);
  const size_t x_at = plan.add<T>(dw ? round * x_size : 0);
  const size_t out_at = plan.add<T>(product.chunk() * w.c * t.lanes, threads);
  const size_t values_at = plan.add<T>(masked ? weights : 0);
  const Scratch scratch(plan);
  T* const packed_grad = scratch.at<T>(grad_at);
  T* const packed_x = scratch.at<T>(x_at);
  if (masked) product.values = scratch.at<T>(values_at);

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, product.chunk() * w.c * t.lanes, thread);
    const Range mine = share(blocks, thread, team);  // the blocks whose dw this thread computes
    if (masked) mask_share(w.values, w.mask, weights, scratch.at<T>(values_at), thread, team);
    for (int64_t i = mine.begin; dw && i < mine.end; ++i)
      std::memset(dvalues + w.perm[i] * w.r * w.c, 0, static_cast<size_t>(w.r * w.c) * sizeof(T));

    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0) barrier(team);
      pack_share(k, grad, gs, sizes.batch, t, first, strips, sizes.rows, packed_grad, thread, team, padded_rows);
      if (dw) pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed_x, thread, team, padded_cols);
      barrier(team);
      if (dbias != nullptr)
        sum_share(k, packed_grad, grad_size, strips, t.lanes, sizes.rows, first > 0, dbias, thread, team);
      if (dx != nullptr && sizes.cols > 0)
        product.share_of(k, t, packed_grad, grad_size, sizes.batch, first, strips, out, thread, team);
      for (int64_t strip = 0; dw && strip < strips; strip += outer_strips) {
        int64_t column = row_at(w.ccol, block_cols + 1, 0, mine.begin + 1) - 1;
        for (int64_t i = mine.begin; i < mine.end; ++i) {
          while (w.ccol[column + 1] <= i) ++column;
          for (int64_t row = 0; row < w.r; row += kOuterRows) {
            k.bsr_outer({packed_x + strip * x_size + column * w.c * t.lanes, x_size,
                         packed_grad + strip * grad_size + (w.row[i] * w.r + row) * t.lanes, grad_size, t.lanes,
                         std::min(outer_strips, strips - strip), t.tile, std::min(kOuterRows, w.r - row), w.c,
                         dvalues + (w.perm[i] * w.r + row) * w.c, w.c});
          }
        }
      }
    }
    for (int64_t i = mine.begin; dw && w.mask != nullptr && i < mine.end; ++i) {
      for (int64_t at = w.perm[i] * w.r * w.c; at < (w.perm[i] + 1) * w.r * w.c; ++at) {
        if (w.mask[at] == 0) dvalues[at] = T(0);
      }
    }
  });
}

}  // namespace

template <class T>
void bsr_linear_backward(const LinearSizes& sizes, const T* grad, Strides gs, const T* x, Strides xs,
                         const BsrWeight<T>& w, T* dx, Strides dxs, T* dvalues, T* dbias, int threads) {
  if (sizes.batch == 0) {
    const int64_t weights = w.ccol[ceil_div(sizes.cols, w.c)] * w.r * w.c;
    if (dvalues != nullptr) std::memset(dvalues, 0, static_cast<size_t>(weights) * sizeof(T));
    if (dbias != nullptr) std::memset(dbias, 0, static_cast<size_t>(sizes.rows) * sizeof(T));
    return;
  }
  const bool fused = dvalues != nullptr && w.c < kSplitColumns;
  (fused ? &backward_fused<T> : &backward_split<T>)(sizes, grad, gs, x, xs, w, dx, dxs, dvalues, dbias, threads);
}

#define LTH_INSTANTIATE(T)                                                                                             \
  template void bsr_linear_forward<T>(const LinearSizes&, const T*, Strides, const BsrWeight<T>&, const T*, T*,        \
                                      Strides, int);                                                                   \
  template void bsr_linear_backward<T>(const LinearSizes&, const T*, Strides, const T*, Strides, const BsrWeight<T>&,  \
                                       T*, Strides, T*, T*, int);
LTH_INSTANTIATE(float)
LTH_INSTANTIATE(double)

}  // namespace lth
