// Two ways, both after packing dy and x:
// Blocks of few columns (fused): both gradients column by column through the transposed index, as in csr_linear, four
// rows of a block at a time.
// Blocks of several columns (split): dX is a forward pass through the transposed index, columns of a block for its
// rows, and dW an outer product for each block over many strips: each reads a strip for several columns.
// Where dy is large both go over bands of its rows, so that it is read from L2.
#include <algorithm>
#include <cstring>

#include "bsr_linear.h"
#include "bsr_product.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int kQuad = 4;                   // rows that the fused backward pass takes at a time
constexpr int64_t kSplitColumns = 4;       // columns of a block from which on dX and dW are computed apart
constexpr int64_t kBandBytes = 384 << 10;  // packed dy that stays in L2
constexpr int64_t kBandColumns = 256;      // columns whose x and dx stay in L2 with it
constexpr int64_t kOuterRows = 16;         // rows of a block whose dy stay in L1 during an outer product,
constexpr int64_t kOuterBytes = 20 << 10;  // about the bytes of them, over several strips,
constexpr int64_t kOuterLanes = 384;       // which are enough for the sums over lanes to cost little

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

// The columns of the weight with their blocks cut into entries of Rows rows, `each` of them for a column of a block,
// from row `first_row` of the block on. Entries are in column order; begin[band * columns + column] is the first of a
// column in a band of block rows, and band + 1 leads to their end.
template <class T, int Rows>
struct Entries {
  const BsrWeight<T>& w;
  int64_t first_row, each;
  int64_t columns, bands, band;  // band: block rows in each of them
  int32_t* offset = nullptr;
  int32_t* begin = nullptr;
  T* values = nullptr;   // [entries, Rows]
  T* dvalues = nullptr;  // likewise

  // 4x1 blocks are entries as they are stored.
  bool direct() const { return w.c == 1 && w.r == Rows && each == 1; }

  // Finds offset and begin for these block columns.
  void find(Range mine) const {
    if (each == 0) return;
    for (int64_t c = mine.begin; c < mine.end; ++c) {
      const int32_t* const rows = w.row + w.ccol[c];
      const int64_t count = w.ccol[c + 1] - w.ccol[c];
      for (int64_t b = 0; b <= bands; ++b) {
        int64_t before = b == 0 ? 0 : count;
        if (b > 0 && b < bands) before = std::lower_bound(rows, rows + count, b * band) - rows;
        for (int64_t j = 0; j < w.c; ++j) {
          begin[b * columns + c * w.c + j] = static_cast<int32_t>(each * (w.ccol[c] * w.c + j * count + before));
        }
      }
      for (int64_t j = 0, at = each * w.ccol[c] * w.c; j < w.c; ++j) {
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t q = 0; q < each; ++q) offset[at++] = static_cast<int32_t>(rows[i] * w.r + first_row + q * Rows);
        }
      }
    }
  }

  // Calls body(first value of an entry among those stored, in column order) for all entries of these block columns.
  template <class Body>
  void each_entry(Range mine, Body&& body) const {
    for (int64_t c = mine.begin; c < mine.end; ++c) {
      for (int64_t j = 0, at = each * w.ccol[c] * w.c * Rows; j < w.c; ++j) {
        for (int64_t i = w.ccol[c]; i < w.ccol[c + 1]; ++i) {
          const int64_t stored = (w.perm[i] * w.r + first_row) * w.c + j;
          for (int64_t q = 0; q < each; ++q, at += Rows) body(stored + q * Rows * w.c, at);
        }
      }
    }
  }

  T live(T value, int64_t stored) const { return w.mask == nullptr || w.mask[stored] != 0 ? value : T(0); }

  void gather(Range mine) const {
    if (direct() && w.mask == nullptr) {
      for (int64_t i = w.ccol[mine.begin]; i < w.ccol[mine.end]; ++i)
        std::memcpy(values + i * Rows, w.values + w.perm[i] * int64_t{Rows}, Rows * sizeof(T));
      return;
    }
    each_entry(mine, [&](int64_t stored, int64_t at) {
      for (int i = 0; i < Rows; ++i) values[at + i] = live(w.values[stored + i * w.c], stored + i * w.c);
    });
  }

  void clear(Range mine) const {
    const int64_t size = each * w.c * Rows;
    std::fill(dvalues + w.ccol[mine.begin] * size, dvalues + w.ccol[mine.end] * size, T(0));
  }

  void scatter(Range mine, T* to) const {
    if (direct() && w.mask == nullptr) {
      for (int64_t i = w.ccol[mine.begin]; i < w.ccol[mine.end]; ++i)
        std::memcpy(to + w.perm[i] * int64_t{Rows}, dvalues + i * Rows, Rows * sizeof(T));
      return;
    }
    each_entry(mine, [&](int64_t stored, int64_t at) {
      for (int i = 0; i < Rows; ++i) to[stored + i * w.c] = live(dvalues[at + i], stored + i * w.c);
    });
  }
};

// Both gradients together, or dW alone, for blocks of few columns.
template <class T>
void backward_fused(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides xs, const BsrWeight<T>& w,
                    T* dx, Strides dxs, T* dvalues, T* dbias, int threads) {
  const Kernels<T>& k = kernels<T>();
  const auto& ops = k.template indexed<int32_t>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), block_cols = ceil_div(sizes.cols, w.c);
  const int64_t blocks = w.ccol[block_cols], padded_cols = block_cols * w.c, weights = blocks * w.r * w.c;
  const Tiling t(sizes.batch, k.lanes, k.backward_tile);
  threads = useful_threads(threads, 2 * work_of(weights, sizes.cols, t));
  const bool own = own_copies(blocks * w.c * ceil_div(w.r, kQuad), ceil_div(sizes.rows, kQuad), threads);
  const int64_t round = strips_per_round(t, padded_rows * (own ? threads : 1) + padded_cols, sizeof(T), threads);
  const int64_t grad_size = padded_rows * t.lanes, x_size = padded_cols * t.lanes;

  const int64_t grad_row = w.r * t.lanes * static_cast<int64_t>(sizeof(T)), block_rows = padded_rows / w.r;
  const int64_t bands = grad_row * block_rows <= 2 * kBandBytes ? 1 : ceil_div(grad_row * block_rows, kBandBytes);
  const int64_t band = ceil_div(block_rows, bands), chunk = bands > 1 ? kBandColumns : kChunk;
  Entries<T, kQuad> quads{w, 0, w.r / kQuad, padded_cols, bands, band};
  Entries<T, 1> singles{w, quads.each * kQuad, w.r % kQuad, padded_cols, bands, band};
  const int64_t quad_values = blocks * w.c * quads.each * kQuad;

  Plan plan;
  const size_t grad_at = plan.add<T>(round * grad_size, own ? threads : 1);
  const size_t x_at = plan.add<T>(round * x_size);
  const size_t values_at = plan.add<T>(weights);
  const size_t dvalues_at = plan.add<T>(weights);
  const size_t offset_at = plan.add<int32_t>(blocks * w.c * (quads.each + singles.each));
  const size_t begin_at = plan.add<int32_t>(2 * (bands + 1) * padded_cols);
  const size_t out_at = plan.add<T>(chunk * t.lanes, threads);  // before that, for pack_share
  const Scratch scratch(plan);
  T* const packed_x = scratch.at<T>(x_at);
  quads.values = scratch.at<T>(values_at);
  singles.values = quads.values + quad_values;
  quads.dvalues = scratch.at<T>(dvalues_at);
  singles.dvalues = quads.dvalues + quad_values;
  quads.offset = scratch.at<int32_t>(offset_at);
  singles.offset = quads.offset + blocks * w.c * quads.each;
  quads.begin = scratch.at<int32_t>(begin_at);
  singles.begin = quads.begin + (bands + 1) * padded_cols;

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, chunk * t.lanes, thread);
    T* const packed_grad = scratch.at<T>(grad_at, round * grad_size, own ? thread : 0);
    // This thread's alone, in every strip: nobody else adds to their dw.
    const int64_t row_cost = ceil_div(kBsrRowCost, w.r), weight = blocks + row_cost * block_cols;
    const int64_t align = std::max<int64_t>(1, cut_alignment(sizes.cols, team) / w.c);
    const auto cut = [&](int part) { return row_at(w.ccol, block_cols, row_cost, weight * part / team, align); };
    const Range mine{cut(thread), cut(thread + 1)}, columns{mine.begin * w.c, mine.end * w.c};
    const auto prepare = [&](const auto& entries) {
      entries.find(mine);
      entries.clear(mine);
      if (dx != nullptr) entries.gather(mine);
    };
    prepare(quads);
    prepare(singles);

    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0 && !own) barrier(team);
      const int part = own ? 0 : thread, parts = own ? 1 : team;
      pack_share(k, grad, sizes.batch, t, first, strips, sizes.rows, packed_grad, out, part, parts, padded_rows);
      for (int64_t strip = 0; mine.begin < mine.end && strip < strips; ++strip) {
        T* const to = packed_x + strip * x_size;
        pack(k, x, xs, sizes.batch, t, first + strip, {columns.begin, std::min(columns.end, sizes.cols)}, to);
        if (columns.end > sizes.cols) std::fill(to + sizes.cols * t.lanes, to + x_size, T(0));
      }
      if (!own) barrier(team);
      if (dbias != nullptr)
        sum_share(k, packed_grad, grad_size, strips, t.lanes, sizes.rows, first > 0, dbias, thread, team);
      for (int64_t strip = 0; strip < strips; ++strip) {
        const T* const g = packed_grad + strip * grad_size;
        for (int64_t c = columns.begin; c < columns.end; c += chunk) {
          const int64_t count = std::min(chunk, columns.end - c);
          const T* const xc = packed_x + strip * x_size + c * t.lanes;
          for (int64_t b = 0; b < bands; ++b) {
            if (quads.each > 0) {
              const int32_t* const begin = quads.begin + b * padded_cols + c;
              (dx != nullptr ? ops.bsr_backward : ops.bsr_sddmm)[kQuad][t.tile](
                  {xc, t.lanes, g, quads.offset, t.lanes, t.lanes, quads.values, begin, begin + padded_cols, count,
                   b > 0, out, t.lanes, quads.dvalues});
            }
            if (singles.each > 0) {
              const int32_t* const begin = singles.begin + b * padded_cols + c;
              (dx != nullptr ? ops.backward : ops.sddmm)[t.tile](
                  {xc, t.lanes, g, singles.offset, t.lanes, singles.values, begin, begin + padded_cols, count,
                   b > 0 || quads.each > 0, out, t.lanes, singles.dvalues});
            }
          }
          const int64_t stop = std::min(count, sizes.cols - c);
          for (int64_t i = 0; dx != nullptr && i < stop; i += kChunk)
            unpack(k, out + i * t.lanes, std::min(kChunk, stop - i), dx, dxs, sizes.batch, t, first + strip, c + i);
        }
      }
    }
    quads.scatter(mine, dvalues);
    singles.scatter(mine, dvalues);
  });
}

// dX alone, or dX and dW apart, for blocks of several columns.
template <class T>
void backward_split(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides xs, const BsrWeight<T>& w,
                    T* dx, Strides dxs, T* dvalues, T* dbias, int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), block_cols = ceil_div(sizes.cols, w.c);
  const int64_t blocks = w.ccol[block_cols], padded_cols = block_cols * w.c, weights = blocks * w.r * w.c;
  const bool dw = dvalues != nullptr, masked = w.mask != nullptr && dx != nullptr;
  const Tiling t = tiling_of(k, sizes.batch, w.c);
  threads = useful_threads(threads, 2 * work_of(weights, sizes.cols, t));
  const int64_t grad_size = padded_rows * t.lanes, x_size = padded_cols * t.lanes;
  const int64_t outer_row = std::min(w.r, kOuterRows) * t.lanes * static_cast<int64_t>(sizeof(T));
  const int64_t outer_strips = std::min({t.strips, ceil_div(kOuterLanes, t.lanes), kOuterBytes / outer_row + 1});
  const bool own = own_copies(blocks, ceil_div(sizes.rows, w.r), threads);
  const int64_t features = padded_rows * (own ? threads : 1) + (dw ? padded_cols : 0);
  const int64_t round = std::max(strips_per_round(t, features, sizeof(T), threads), dw ? outer_strips : 1);
  const int64_t band_rows = std::max<int64_t>(
      1, kBandBytes / (w.r * t.lanes * outer_strips * static_cast<int64_t>(sizeof(T))));

  Product<T> product{sizes.cols, w.c, w.r, w.ccol, w.row, w.perm, w.values, 1, w.c, nullptr, dx, dxs};
  Plan plan;
  const size_t grad_at = plan.add<T>(round * grad_size, own ? threads : 1);
  const size_t x_at = plan.add<T>(dw ? round * x_size : 0);
  const size_t out_at = plan.add<T>(product.chunk() * w.c * t.lanes, threads);
  const size_t values_at = plan.add<T>(masked ? weights : 0);
  const size_t next_at = plan.add<int32_t>(dw ? block_cols : 0, threads);
  const size_t gate_at = plan.add<T>(gate_size(grad, t), threads);
  const Scratch scratch(plan);
  T* const packed_x = scratch.at<T>(x_at);
  if (masked) product.values = scratch.at<T>(values_at);

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, product.chunk() * w.c * t.lanes, thread);
    T* const packed_grad = scratch.at<T>(grad_at, round * grad_size, own ? thread : 0);
    T* const gate = scratch.at<T>(gate_at, gate_size(grad, t), thread);
    // The blocks whose dw this thread computes, the columns they lie in, and the next of them in each of these.
    const Range mine = share(blocks, thread, team);
    const auto column_at = [&](int64_t block) { return row_at(w.ccol, block_cols + 1, 0, block + 1) - 1; };
    Range columns{0, 0};
    if (mine.begin < mine.end) columns = {column_at(mine.begin), column_at(mine.end - 1) + 1};
    int32_t* const next = scratch.at<int32_t>(next_at, dw ? block_cols : 0, thread);
    if (masked) mask_share(w.values, w.mask, weights, scratch.at<T>(values_at), thread, team);
    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0) barrier(team);
      const int part = own ? 0 : thread, parts = own ? 1 : team;
      pack_share(k, grad, sizes.batch, t, first, strips, sizes.rows, packed_grad, gate, part, parts, padded_rows);
      if (dw) pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed_x, thread, team, padded_cols);
      barrier(team);
      if (dbias != nullptr)
        sum_share(k, packed_grad, grad_size, strips, t.lanes, sizes.rows, first > 0, dbias, thread, team);
      if (dx != nullptr && sizes.cols > 0)
        product.share_of(k, t, packed_grad, grad_size, sizes.batch, first, strips, out, thread, team);
      for (int64_t strip = 0; dw && strip < strips; strip += outer_strips) {
        const int64_t count = std::min(outer_strips, strips - strip);
        const T* const g = packed_grad + strip * grad_size;
        const T* const xs_of = packed_x + strip * x_size;
        std::copy(w.ccol + columns.begin, w.ccol + columns.end, next);
        if (columns.begin < columns.end) next[0] = static_cast<int32_t>(mine.begin);
        for (int64_t band = 0; band < padded_rows / w.r; band += band_rows) {
          for (int64_t c = columns.begin; c < columns.end; ++c) {
            int32_t& i = next[c - columns.begin];
            const int64_t stop = std::min<int64_t>(mine.end, w.ccol[c + 1]);
            for (; i < stop && w.row[i] < band + band_rows; ++i) {
              T* const dblock = dvalues + w.perm[i] * w.r * w.c;
              if (first + strip == 0) std::memset(dblock, 0, static_cast<size_t>(w.r * w.c) * sizeof(T));
              for (int64_t row = 0; row < w.r; row += kOuterRows) {
                k.bsr_outer({xs_of + c * w.c * t.lanes, x_size, g + (w.row[i] * w.r + row) * t.lanes, grad_size,
                             t.lanes, count, t.tile, std::min(kOuterRows, w.r - row), w.c, dblock + row * w.c, w.c});
              }
            }
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
void bsr_linear_backward(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides xs,
                         const BsrWeight<T>& w, T* dx, Strides dxs, T* dvalues, T* dbias, int threads) {
  if (sizes.batch == 0) {
    const int64_t weights = w.ccol[ceil_div(sizes.cols, w.c)] * w.r * w.c;
    if (dvalues != nullptr) std::memset(dvalues, 0, static_cast<size_t>(weights) * sizeof(T));
    if (dbias != nullptr) std::memset(dbias, 0, static_cast<size_t>(sizes.rows) * sizeof(T));
    return;
  }
  const bool fused = dvalues != nullptr && w.c < kSplitColumns;
  (fused ? &backward_fused<T> : &backward_split<T>)(sizes, grad, x, xs, w, dx, dxs, dvalues, dbias, threads);
}

#define LTH_INSTANTIATE(T)                                                                                             \
  template void bsr_linear_backward<T>(const LinearSizes&, const Gradient<T>&, const T*, Strides, const BsrWeight<T>&, \
                                       T*, Strides, T*, T*, int);
LTH_INSTANTIATE(float)
LTH_INSTANTIATE(double)

}  // namespace lth
