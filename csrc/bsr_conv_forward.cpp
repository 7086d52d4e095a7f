// y = conv2d(x, W) + bias for a BSR weight: bsr_spmm inside the walk of conv_forward.h. A column of a block is an entry
// of its own, since every column has its own offset.
//
// Where groups cut through blocks, the rows of a block read different channels; each row is then listed alone, as a
// panel of one.
#include "bsr_conv.h"
#include "bsr_product.h"
#include "conv_entries.h"
#include "conv_forward.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr double kBlockEntries = 40;  // of a panel and a block of the reduction, at the least

template <class T>
struct BlockWeight {
  const ConvSizes& s;
  const Entries<int32_t>& entries;
  const Kernels<T>& k;
  const BsrWeight<T>& w;
  int64_t unit;
  bool apart;  // rows are listed alone
  int64_t cols;
  const T* bias;  // padded to whole blocks, or null
  int32_t* offset;
  int32_t* position;
  T* masked;  // the values, zero where the mask has zeros; null without a mask

  Range channels(int part, int parts) const {
    const int64_t blocks = ceil_div(s.out_channels, w.r), row_cost = ceil_div(kBsrRowCost, w.c);
    const int64_t weight = w.crow[blocks] + row_cost * blocks;
    const auto cut = [&](int p) { return row_at(w.crow, blocks, row_cost, weight * p / parts) * w.r; };
    return {std::min(cut(part), s.out_channels), std::min(cut(part + 1), s.out_channels)};
  }

  void list(int64_t block_row) const {
    const int64_t first = w.crow[block_row], stored = w.crow[block_row + 1] - first;
    const int32_t* const block_col = w.col + first;
    int64_t count = stored * w.c;  // the last block may reach over the edge
    if (stored > 0) count -= std::max<int64_t>(0, (block_col[stored - 1] + 1) * w.c - cols);
    const auto column_of = [&](int64_t i) { return block_col[i / w.c] * w.c + i % w.c; };
    const auto listed = [&](int64_t row, int64_t out_channel, int64_t start, int64_t within) {
      entries.list(row, out_channel, start, count, column_of, [&](int64_t at, int64_t i, int32_t o) {
        offset[at] = o;
        position[at] = static_cast<int32_t>((first + i / w.c) * w.r * w.c + within * w.c + i % w.c);
      });
    };
    if (!apart) {
      listed(block_row, block_row * w.r, first * w.c, 0);
      return;
    }
    for (int64_t i = 0; i < w.r && block_row * w.r + i < s.out_channels; ++i) {
      const int64_t row = block_row * w.r + i;
      listed(row, row, (first * w.r + i * stored) * w.c, i);
    }
  }

  void prepare(int thread, int team) const {
    const int64_t blocks = ceil_div(s.out_channels, w.r);
    const Range mine = share(blocks, thread, team);
    for (int64_t b = mine.begin; b < mine.end; ++b) list(b);
    if (masked != nullptr) mask_share(w.values, w.mask, w.crow[blocks] * w.r * w.c, masked, thread, team);
    barrier(team);
  }

  bool in_place() const { return s.out_channels % w.r == 0; }  // bsr_spmm writes whole panels

  void multiply(const T* in, Range rows, int64_t block, Range taps, const Target<T>& out) const {
    const auto& spmm = k.i32.bsr_spmm;
    const int64_t height = apart ? 1 : w.r;  // of a panel's list
    const int64_t first = rows.begin / height, count = ceil_div(rows.end - rows.begin, height);
    const T* const values = masked != nullptr ? masked : w.values;
    for (int64_t done = 0; done < height;) {
      const int64_t panel = panel_of(k, height - done, out.tile);
      spmm[panel][out.tile]({in, offset, unit, 1, 0, values + done * w.c, position, 1, w.c, 1, 0,
                         entries.begin(block, taps, first), entries.end(block, taps, first), count, height,
                         bias == nullptr ? nullptr : bias + rows.begin + done, block > 0,
                         out.to + (rows.begin + done) * out.to_pitch, out.to_pitch,
                         out.relu, out.from + (rows.begin + done) * out.from_pitch, out.from_pitch, out.place});
      done += panel;
    }
  }
};

}  // namespace

template <class T>
void bsr_conv2d_forward(const ConvSizes& sizes, const T* x, const BsrWeight<T>& w, const T* bias, T* y, bool relu,
                        int threads) {
  const ConvSizes s = pixels_as_images(sizes);
  if (s.n == 0 || s.out_channels == 0 || s.out_h == 0 || s.out_w == 0) return;
  const Kernels<T>& k = kernels<T>();
  const int64_t block_rows = ceil_div(s.out_channels, w.r), padded = block_rows * w.r, stored = w.crow[block_rows];
  const int64_t group_rows = s.out_channels / s.groups;
  const bool apart = s.groups > 1 && group_rows % w.r != 0;
  const int64_t widest = k.bsr_tile[apart || w.r < 2 ? 1 : w.r < 4 ? 2 : 4];
  const double work = static_cast<double>(stored * w.r * w.c + kBsrRowCost * s.out_channels) *
                      static_cast<double>(s.n * s.out_h * s.out_w);
  threads = useful_threads(threads, work);
  const Forward f(s, padded, static_cast<double>(stored * w.c) / static_cast<double>(block_rows), kBlockEntries,
                  k.lanes, widest, sizeof(T), threads);
  Entries<int32_t> entries(s, f, apart ? s.out_channels : block_rows);

  Plan plan;
  const int64_t count = stored * w.c * (apart ? w.r : 1);
  const size_t offset_at = plan.add<int32_t>(count);
  const size_t position_at = plan.add<int32_t>(count);
  const size_t pointers_at = plan.add<int32_t>(entries.pointer_count());
  const size_t masked_at = plan.add<T>(w.mask != nullptr ? stored * w.r * w.c : 0);
  const size_t bias_at = plan.add<T>(bias != nullptr ? padded : 0);
  const Scratch scratch(plan);
  entries.pointers = scratch.at<int32_t>(pointers_at);
  if (bias != nullptr) {
    std::copy(bias, bias + s.out_channels, scratch.at<T>(bias_at));
    std::fill(scratch.at<T>(bias_at) + s.out_channels, scratch.at<T>(bias_at) + padded, T(0));
  }
  const BlockWeight<T> weight{s,
                              entries,
                              k,
                              w,
                              f.unit,
                              apart,
                              s.channels / s.groups * s.kernel_h * s.kernel_w,
                              bias != nullptr ? scratch.at<T>(bias_at) : nullptr,
                              scratch.at<int32_t>(offset_at),
                              scratch.at<int32_t>(position_at),
                              w.mask != nullptr ? scratch.at<T>(masked_at) : nullptr};
  convolve(s, f, k, weight, x, y, relu, threads);
}

template void bsr_conv2d_forward<float>(const ConvSizes&, const float*, const BsrWeight<float>&, const float*, float*,
                                        bool, int);
template void bsr_conv2d_forward<double>(const ConvSizes&, const double*, const BsrWeight<double>&, const double*,
                                         double*, bool, int);

}  // namespace lth
