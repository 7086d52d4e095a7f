// Forward: pack x, then spmm over this thread's rows in every strip, unpacking y as it appears.
// Backward: pack dy and x, then both gradients over this thread's columns, through the transposed index. A round is as
// many strips as fit the scratch memory; threads wait for each other after packing and before the next round.
// Activations that are the one strip of their batch as they stand are neither packed nor unpacked. Small batches have
// drivers of their own, csr_small.
#include "csr_linear.h"

#include <cstring>

#include "csr_small.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"
#include "strips.h"

namespace lth {
namespace {

constexpr int64_t kRowCost = 4;  // a row's own cost, in non-zeros: loading and storing its accumulators

// Where the weight is not very sparse, the forward pass takes the reduction block by block, so that x is read from L1
// rather than L2: that pays from some 16 non-zeros for each row and block on, with narrow strips, whose blocks hold
// more columns, but not with strips so narrow that the weight itself, no longer read in one stream, takes most of the
// time.
constexpr int64_t kBlockBytes = 48 << 10;
constexpr int64_t kBlockStripBytes = 256;
constexpr int64_t kBlockNonZeros = 16;
constexpr int64_t kBlockChunk = 256;  // rows for which a block stays in its cache

// A strip that does not fit an L2 cache is read from there in blocks all the same, of this size and of full width.
constexpr int64_t kFarBytes = 768 << 10;
constexpr int64_t kFarBlockBytes = 512 << 10;
constexpr int64_t kFarNonZeros = 16;      // fewer for each row and block are not worth reloading the accumulators
constexpr int64_t kNearerNonZeros = 84;   // and so many are worth L1 rather than L2 for such a strip

// The blocks of a reduction.
struct Blocks {
  int64_t count, cols;
  bool near;  // they are to stay in L1, hence narrow
};

// Of `rows` rows over a strip of `cols` columns of so many bytes.
Blocks far_blocks(int64_t rows, int64_t cols, int64_t nnz, int64_t row_bytes) {
  const int64_t count = ceil_div(cols * row_bytes, kFarBlockBytes);
  if (cols * row_bytes <= kFarBytes || nnz < kFarNonZeros * rows * count) return {1, cols, false};
  return {count, ceil_div(cols, count), false};
}

Blocks forward_blocks(const LinearSizes& sizes, int64_t nnz, int64_t bytes, int64_t widest_lanes) {
  const int64_t row_bytes = std::min(sizes.batch, widest_lanes) * bytes;
  const int64_t fit = kBlockBytes / kBlockStripBytes;
  const int64_t least = sizes.cols * row_bytes > kFarBytes ? kNearerNonZeros : kBlockNonZeros;
  if (sizes.batch * bytes > kBlockStripBytes / 4 * 3 && nnz * fit > least * sizes.rows * sizes.cols)
    return {ceil_div(sizes.cols, fit), fit, true};
  return far_blocks(sizes.rows, sizes.cols, nnz, row_bytes);
}

// The first of the non-zeros [k, end) of a row, columns ascending, whose column is not below `stop`. Most often it lies
// in a window about `guess`, where counting takes no branches and no memory access waits for another.
template <class Index>
int64_t first_from(const Index* col, int64_t k, int64_t end, int64_t guess, int64_t stop) {
  constexpr int64_t kWindow = 32;
  if (end - k >= kWindow) {
    const int64_t at = std::max(k, std::min(guess - kWindow / 2, end - kWindow));
    const Index limit = static_cast<Index>(stop);
    Index below = 0;
    for (int64_t i = 0; i < kWindow; ++i) below = static_cast<Index>(below + (col[at + i] < limit));
    if ((below > 0 || at == k) && (below < kWindow || at + kWindow == end)) return at + below;
  }
  for (int64_t length = end - k; length > 0; length -= (length + 1) / 2) {
    const int64_t half = (length + 1) / 2;
    k += half & -static_cast<int64_t>(static_cast<int64_t>(col[k + half - 1]) < stop);
  }
  return k;
}

// Asks for elements [begin, end) ahead of their use.
template <class T>
void prefetch(const T* p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// pointers[block * rows + row]: the first non-zero of each block in each of the rows; [count * rows + row]: their end.
template <class Index>
void find_blocks(const Blocks& b, int64_t rows, Range mine, const int32_t* crow, const Index* col, int32_t* pointers) {
  for (int64_t r = mine.begin; r < mine.end; ++r) {
    int64_t k = crow[r];
    const int64_t end = crow[r + 1], each = (end - k) / b.count;
    for (int64_t block = 0; block + 1 < b.count; ++block) {
      pointers[block * rows + r] = static_cast<int32_t>(k);
      k = first_from(col, k, std::min(end, k + b.cols), k + each, (block + 1) * b.cols);
    }
    pointers[(b.count - 1) * rows + r] = static_cast<int32_t>(k);
    pointers[b.count * rows + r] = static_cast<int32_t>(end);
  }
}

}  // namespace

template <class T, class Index>
void csr_linear_forward(const LinearSizes& sizes, const T* x, Strides xs, const T* values, const T* bias, T* y,
                        Strides ys, const int32_t* crow, const Index* col, bool relu, int threads) {
  if (sizes.batch == 0 || sizes.rows == 0) return;
  if (takes_few<T>(sizes.batch))
    return csr_few_forward(sizes, x, xs, values, bias, y, ys, crow, col, relu, threads);
  const Kernels<T>& k = kernels<T>();
  const int64_t nnz = crow[sizes.rows];
  const Blocks blocks = forward_blocks(sizes, nnz, sizeof(T), k.spmm_tile * k.lanes);
  const int64_t narrow = std::max<int64_t>(1, kBlockStripBytes / (k.lanes * static_cast<int64_t>(sizeof(T))));
  const Tiling widest(sizes.batch, k.lanes, blocks.near ? std::min(narrow, k.spmm_tile) : k.spmm_tile);
  const int64_t chunk = blocks.count > 1 ? kBlockChunk : kChunk;
  const double work = (static_cast<double>(nnz) + static_cast<double>(kRowCost * sizes.rows)) *
                      static_cast<double>(widest.lanes * widest.strips);
  threads = useful_threads(threads, work);
  const Tiling t = is_strip(sizes.batch, xs, widest.lanes) ? widest : widest.dealt(sizes.batch, threads);
  const auto spmm = k.template indexed<Index>().spmm[t.tile];
  const int64_t round = strips_per_round(t, sizes.cols, sizeof(T), threads);
  const bool read_x = is_strip(sizes.batch, xs, t.lanes), write_y = is_strip(sizes.batch, ys, t.lanes);

  Plan plan;
  const size_t packed_at = plan.add<T>(read_x ? 0 : round * sizes.cols * t.lanes);
  const size_t out_at = plan.add<T>(chunk * t.lanes, threads);
  const size_t pointers_at = plan.add<int32_t>(blocks.count > 1 ? (blocks.count + 1) * sizes.rows : 0);
  const Scratch scratch(plan);
  T* const packed = scratch.at<T>(packed_at);
  const T* const all_x = read_x ? x : packed;
  int32_t* const pointers = scratch.at<int32_t>(pointers_at);

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, chunk * t.lanes, thread);
    if (blocks.count > 1) find_blocks(blocks, sizes.rows, share(sizes.rows, thread, team), crow, col, pointers);
    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      const bool dealt = is_dealt(t, round, team);  // each thread packs the strips that it reads, and no other
      if (first > 0 && !(dealt && strips == round)) barrier(team);
      if (!read_x) pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed, thread, team);
      if ((!read_x && !dealt) || (blocks.count > 1 && first == 0)) barrier(team);

      const int64_t strip_weight = nnz + kRowCost * sizes.rows, align = cut_alignment(sizes.rows, team);
      const Range mine = share(strips * strip_weight, thread, team);
      for (int64_t strip = mine.begin / strip_weight; strip * strip_weight < mine.end; ++strip) {
        const auto cut = [&](int64_t weight) {
          return row_at(crow, sizes.rows, kRowCost, std::min(weight - strip * strip_weight, strip_weight), align);
        };
        const int64_t stop = cut(mine.end);
        for (int64_t r = mine.begin <= strip * strip_weight ? 0 : cut(mine.begin); r < stop; r += chunk) {
          const int64_t count = std::min(chunk, stop - r);
          T* const to = write_y ? y + r * t.lanes : out;
          for (int64_t block = 0; block < blocks.count; ++block) {
            if (blocks.count > 1) {  // a piece of the next chunk's weight, which no hardware foresees in this order
              const int64_t next = crow[r + count], length = crow[std::min(r + count + chunk, stop)] - next;
              const Range piece = share(length, static_cast<int>(block), static_cast<int>(blocks.count));
              prefetch(values, next + piece.begin, next + piece.end);
              prefetch(col, next + piece.begin, next + piece.end);
            }
            const int32_t* const begin = blocks.count > 1 ? pointers + block * sizes.rows + r : crow + r;
            spmm({all_x + strip * sizes.cols * t.lanes, col, t.lanes, values, begin,
                  blocks.count > 1 ? begin + sizes.rows : begin + 1, count, bias == nullptr ? nullptr : bias + r,
                  block > 0, to, t.lanes, nullptr, 0, nullptr, relu && block + 1 == blocks.count});
          }
          if (write_y) continue;
          for (int64_t i = 0; i < count; i += kChunk) {
            unpack(k, out + i * t.lanes, std::min(kChunk, count - i), y, ys, sizes.batch, t, first + strip, r + i);
          }
        }
      }
    }
  });
}

template <class T, class Index>
void csr_linear_backward(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides xs, const T* values,
                         T* dx, Strides dxs, T* dvalues, T* dbias, const int32_t* crow, const Index* col,
                         const int32_t* ccol, const Index* row, const int32_t* perm, int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t nnz = ccol[sizes.cols];
  if (sizes.batch == 0) {
    if (dvalues != nullptr) std::memset(dvalues, 0, static_cast<size_t>(nnz) * sizeof(T));
    if (dbias != nullptr) std::memset(dbias, 0, static_cast<size_t>(sizes.rows) * sizeof(T));
    return;
  }
  if (takes_rows<T>(sizes.batch, nnz)) {
    return csr_rows_backward(sizes, grad, x, xs, values, dx, dxs, dvalues, dbias, crow, col, threads);
  }
  const bool dw = dvalues != nullptr, both = dw && dx != nullptr;
  const Tiling t(sizes.batch, k.lanes, dw ? k.backward_tile : k.spmm_tile);
  const auto& ops = k.template indexed<Index>();
  const double work =
      (static_cast<double>(nnz) + static_cast<double>(kRowCost * sizes.cols)) * static_cast<double>(t.lanes * t.strips);
  threads = useful_threads(threads, 2 * work);
  const bool own = own_copies(nnz, sizes.rows, threads);
  const int64_t round = strips_per_round(t, sizes.rows * (own ? threads : 1) + sizes.cols, sizeof(T), threads);
  const bool read_grad = is_strip(sizes.batch, grad, t.lanes), read_x = !dw || is_strip(sizes.batch, xs, t.lanes);
  const bool write_dx = dx != nullptr && is_strip(sizes.batch, dxs, t.lanes);
  // Where dy is large, column after column goes over bands of its rows, so that it is read from L2.
  const Blocks bands = far_blocks(sizes.cols, sizes.rows, nnz, t.lanes * static_cast<int64_t>(sizeof(T)));
  const int64_t chunk = bands.count > 1 ? kBlockChunk : kChunk;

  Plan plan;
  const size_t grad_at = plan.add<T>(read_grad ? 0 : round * sizes.rows * t.lanes, own ? threads : 1);
  const size_t x_at = plan.add<T>(read_x ? 0 : round * sizes.cols * t.lanes);
  const size_t values_at = plan.add<T>(dx != nullptr ? nnz : 0);
  const size_t dvalues_at = plan.add<T>(dw ? nnz : 0);
  const size_t out_at = plan.add<T>(chunk * t.lanes, threads);  // before that, for pack_share
  const size_t pointers_at = plan.add<int32_t>(bands.count > 1 ? (bands.count + 1) * sizes.cols : 0);
  const Scratch scratch(plan);
  T* const packed_x = scratch.at<T>(x_at);
  const T* const all_x = read_x ? x : packed_x;
  T* const by_column = scratch.at<T>(values_at);
  T* const dby_column = scratch.at<T>(dvalues_at);
  int32_t* const pointers = scratch.at<int32_t>(pointers_at);

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, chunk * t.lanes, thread);
    T* const packed_grad = scratch.at<T>(grad_at, round * sizes.rows * t.lanes, own ? thread : 0);
    const T* const all_grad = read_grad ? grad.data : packed_grad;
    const int64_t weight = nnz + kRowCost * sizes.cols;
    const auto cut = [&](int part) {
      return row_at(ccol, sizes.cols, kRowCost, weight * part / team, cut_alignment(sizes.cols, team));
    };
    // This thread's alone, in every strip: nobody else adds to their dw.
    const Range columns{cut(thread), cut(thread + 1)};
    const Range mine{ccol[columns.begin], ccol[columns.end]};
    if (dx != nullptr) {
      for (int64_t i = mine.begin; i < mine.end; ++i) by_column[i] = values[perm[i]];
    }
    if (bands.count > 1) find_blocks(bands, sizes.cols, columns, ccol, row, pointers);
    if (dw) std::memset(dby_column + mine.begin, 0, static_cast<size_t>(mine.end - mine.begin) * sizeof(T));

    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0 && !own) barrier(team);
      const int part = own ? 0 : thread, parts = own ? 1 : team;
      if (!read_grad) pack_share(k, grad, sizes.batch, t, first, strips, sizes.rows, packed_grad, out, part, parts);
      for (int64_t strip = 0; !read_x && strip < strips; ++strip)
        pack(k, x, xs, sizes.batch, t, first + strip, columns, packed_x + strip * sizes.cols * t.lanes);
      if (!own) barrier(team);

      if (dbias != nullptr) {
        const Range rows = share(sizes.rows, thread, team);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          T total = first > 0 ? dbias[r] : T(0);
          for (int64_t strip = 0; strip < strips; ++strip)
            total += k.sum(all_grad + (strip * sizes.rows + r) * t.lanes, t.lanes);
          dbias[r] = total;
        }
      }
      if (!dw && dx == nullptr) continue;
      for (int64_t strip = 0; strip < strips; ++strip) {
        const T* const g = all_grad + strip * sizes.rows * t.lanes;
        for (int64_t c = columns.begin; c < columns.end; c += chunk) {
          const int64_t count = std::min(chunk, columns.end - c);
          T* const to = write_dx ? dx + c * t.lanes : out;
          for (int64_t band = 0; band < bands.count; ++band) {
            const int32_t* const begin = bands.count > 1 ? pointers + band * sizes.cols + c : ccol + c;
            const int32_t* const end = bands.count > 1 ? begin + sizes.cols : begin + 1;
            if (dw) {
              (both ? ops.backward
                    : ops.sddmm)[t.tile]({all_x + (strip * sizes.cols + c) * t.lanes, t.lanes, g, row, t.lanes,
                                          by_column, begin, end, count, band > 0, to, t.lanes, dby_column});
            } else {
              ops.spmm[t.tile]({g, row, t.lanes, by_column, begin, end, count, nullptr, band > 0, to, t.lanes});
            }
          }
          for (int64_t i = 0; dx != nullptr && !write_dx && i < count; i += kChunk)
            unpack(k, out + i * t.lanes, std::min(kChunk, count - i), dx, dxs, sizes.batch, t, first + strip, c + i);
        }
      }
    }
    if (dw) {
      for (int64_t i = mine.begin; i < mine.end; ++i) dvalues[perm[i]] = dby_column[i];
    }
  });
}

#define LTH_INSTANTIATE(T, Index)                                                                                     \
  template void csr_linear_forward<T, Index>(const LinearSizes&, const T*, Strides, const T*, const T*, T*, Strides,  \
                                             const int32_t*, const Index*, bool, int);                                \
  template void csr_linear_backward<T, Index>(const LinearSizes&, const Gradient<T>&, const T*, Strides, const T*, T*, \
                                              Strides, T*, T*, const int32_t*, const Index*, const int32_t*,           \
                                              const Index*, const int32_t*, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
