// What the backward pass of a convolution prepares: its tiling, and the weight sorted by input channel.
//
// An input pixel meets output (y - shift): with dy packed to [row][output channel][column][image] and bordered with
// zeros, a non-zero is again one constant offset. It is, too, with dy packed to *planes*, [output channel][shift along
// the row][row][column], of one image: a copy for each shift, whose rows are as long as those of x. Strips then run
// over rows, x and dx are used where they are, and nothing is transposed.
//
// `sort` puts the non-zeros, which the transposed index already has in column order, in the order (block of output
// channels, virtual input channel, vertical shift); the blocks are what of dy fits into an L1 cache, and are used where
// they leave enough non-zeros to each channel. With shifts apart, rows of pixels at the border leave out those taps
// that would read nothing but padding.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "conv_geometry.h"
#include "conv_rows.h"
#include "csr_conv.h"
#include "parallel.h"

namespace lth {

constexpr int64_t kPlaneBytes = 512 << 10;  // of packed dy planes: they share an L2 cache with x and dx
constexpr int64_t kDyBytes = 768 << 10;     // of packed dy rows that a thread keeps: most of an L2 cache
constexpr int64_t kRunBytes = 256;          // of one image that are read or written at a time, at least
constexpr int64_t kLoneRunBytes = 1024;     // likewise where there is one image in a block, and nothing to transpose
constexpr int64_t kDyBlockBytes = 32 << 10;   // of dy that one block may touch: most of an L1 cache
constexpr int64_t kDyBlockNonZeros = 24;      // fewer for each channel and block are not worth reloading x and dx

struct Backward {
  Geometry g;
  RowTiling t;
  bool planes;
  int64_t widest;             // registers in a strip, at most
  double cost;                // in multiply-adds of registers
  int64_t dy_pitch;           // elements from one packed output channel to the next
  int64_t dy_row, dy_column;  // from one packed row to the next, from one shift along the row to the next
  int64_t unit;               // of the offsets: divides those of the three by which taps move
  int64_t dy_size;            // elements of packed dy
  int64_t x_row;              // elements in a row of all virtual input channels
  int64_t band;               // virtual input rows that are packed, computed and unpacked together
  int64_t dy_rows;            // rows of dy that are kept, at least those that a band reads
  int64_t block_channels, blocks;  // output channels of a group that are processed together
  RowMap dy_map;
  std::vector<RowMap> maps;      // by x phase; none for planes
  std::vector<int64_t> shifts;   // the vertical ones, ascending, each once
  std::vector<int64_t> columns;  // likewise the horizontal ones

  // rows: output channels of an entry, of which blocks take whole ones.
  Backward(const ConvSizes& s, bool as_planes, bool feature_major, int64_t nnz, int64_t rows, int64_t vector_lanes,
           int64_t widest_tile, int64_t bytes)
      : g(s), planes(as_planes), widest(widest_tile), shifts(distinct(g.y.shift)), columns(distinct(g.x.shift)) {
    const int64_t height = std::max<int64_t>(1, g.y.any.end - g.y.any.begin);
    const double uses = static_cast<double>(nnz) / static_cast<double>(std::max<int64_t>(1, s.channels));
    const double outputs = static_cast<double>(s.out_channels) / static_cast<double>(std::max<int64_t>(1, s.channels));
    const int64_t channels = round_up(s.out_channels, rows), copies = static_cast<int64_t>(columns.size());
    if (planes) {
      const int64_t row_bytes = channels * copies * s.width * bytes;
      const int64_t most = std::max<int64_t>(1, kPlaneBytes / std::max<int64_t>(1, row_bytes) - g.y.max_shift);
      band = ceil_div(height, ceil_div(height, most));
      dy_rows = band + g.y.max_shift;
      const double packed = outputs * static_cast<double>(dy_rows) / static_cast<double>(band);
      t = tile_planes({s.n, s.width * band, 0, 0, uses, packed, false}, copies, vector_lanes, widest);
      cost = t.cost * static_cast<double>(height) / static_cast<double>(band);
      dy_row = s.width;
      dy_column = dy_rows * s.width;
      const bool whole = s.width % vector_lanes == 0, moves = g.y.max_shift > 0 || copies > 1;
      const int64_t grain = whole || !moves ? vector_lanes : s.width;
      // After the last row of a channel there is a register of zeros: its last strip may read that far.
      dy_pitch = round_up(copies * dy_column + (whole ? 0 : vector_lanes), grain);
      // Pitches of an odd number of cache lines put channels into different cache sets.
      if (dy_pitch * bytes % 128 == 0) dy_pitch += grain * ceil_div(64, grain * bytes);
      unit = moves ? grain : dy_pitch;
      dy_size = channels * dy_pitch;
      x_row = 0;
      dy_map = {0, 0, 1, s.out_w};
      block(s, rows, nnz, copies * (t.lanes + g.y.max_shift * s.width) * bytes);
      return;
    }
    const Range u = g.x.any;
    const bool moves = g.x.max_shift > 0;
    t = tile_rows({s.n, u.end - u.begin, g.x.max_shift, (g.y.max_shift + 1) * s.out_channels * bytes, uses,
                   outputs, feature_major},
                  vector_lanes, widest);
    cost = t.cost * static_cast<double>(height);
    const int64_t grain = moves ? t.images : round_up(t.images, vector_lanes);
    dy_pitch = round_up(g.x.max_shift * t.images + t.row_lanes, grain);
    // Power-of-two pitches would put all channels into few cache sets.
    if (dy_pitch * bytes % 512 == 0) dy_pitch += grain;
    unit = moves ? t.images : dy_pitch;
    dy_row = channels * dy_pitch;
    dy_column = t.images;
    x_row = g.virtual_channels * t.row_lanes;
    band = std::min(height, ceil_div(t.images == 1 ? kLoneRunBytes : kRunBytes, std::max<int64_t>(1, s.width * bytes)));
    dy_rows = std::max(kDyBytes / std::max<int64_t>(1, dy_row * bytes), band + g.y.max_shift);
    dy_rows = std::min(dy_rows, round_up(height, band) + g.y.max_shift);
    dy_size = dy_rows * dy_row;

    // Columns of dy that no pixel of x meets are left out.
    const int64_t first = std::max<int64_t>(0, u.begin - g.x.max_shift);
    const int64_t lead = std::max<int64_t>(0, g.x.max_shift - u.begin);
    dy_map = {lead, first, 1, std::max<int64_t>(0, std::min(s.out_w, u.end) - first)};
    for (int64_t f = 0; f < g.x.phases(); ++f) {
      const Range r = g.x.inside[static_cast<size_t>(f)];
      const bool empty = r.begin == r.end;
      maps.push_back({empty ? 0 : r.begin - u.begin, empty ? 0 : g.x.real(r.begin, f), g.x.stride, r.end - r.begin});
    }
    block(s, rows, nnz, (g.y.max_shift + 1) * (t.lanes + g.x.max_shift * t.images) * bytes);
  }

  // Whether dy can be packed to planes: no stride, and output rows as long as input rows, with a tap that
  // reads straight up or down. Kernels that only give dx need whole registers.
  static bool fits_planes(const ConvSizes& s, bool dw, int64_t vector_lanes) {
    return s.stride_h == 1 && s.stride_w == 1 && s.out_w == s.width && s.kernel_w % 2 == 1 && s.pad_w < s.width &&
           (dw || s.width % vector_lanes == 0);
  }

  // Whether all of a row of x is used, so that strips of it can be read from where it is.
  bool whole_rows(const ConvSizes& s) const { return planes || (g.phases == 1 && maps[0].count == s.width); }

  // Whether packing dy meets all of it.
  bool packs_all(const ConvSizes& s) const {
    return dy_map.count == s.out_w && g.y.any.begin <= g.y.max_shift && g.y.any.end >= s.out_h;
  }

  // Which of the copies of a plane is the one for a shift along the row.
  int64_t column_of(int64_t shift) const {
    return std::lower_bound(columns.begin(), columns.end(), shift) - columns.begin();
  }

  int64_t buckets() const { return blocks * g.virtual_channels; }

  // The vertical shifts with which virtual input rows from `first` to `last` meet an output, as indices into `shifts`.
  Range shifts_of(int64_t first, int64_t last) const {
    const auto below = [&](int64_t limit) {
      return static_cast<int64_t>(std::lower_bound(shifts.begin(), shifts.end(), limit) - shifts.begin());
    };
    return {below(first - g.y.out + 1), below(last + 1)};
  }

 private:
  static std::vector<int64_t> distinct(std::vector<int64_t> all) {
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }

  // touched: bytes of dy that a strip meets in each output channel.
  void block(const ConvSizes& s, int64_t rows, int64_t nnz, int64_t touched) {
    const int64_t group_rows = s.out_channels / s.groups;
    block_channels = std::max<int64_t>(1, kDyBlockBytes / touched);
    blocks = ceil_div(group_rows, block_channels);
    if (blocks > 1 && nnz < kDyBlockNonZeros * g.virtual_channels * blocks) blocks = 1;
    block_channels = std::max(rows, round_up(ceil_div(group_rows, std::max<int64_t>(1, blocks)), rows));
    blocks = std::max<int64_t>(1, ceil_div(group_rows, block_channels));
  }
};

// The weight in column order, as the layout stores it: column (ci * kernel_h + ky) * kernel_w + kx. An entry is one
// non-zero, or several of neighbouring output channels from `row` on, their values `stride` apart from `perm` on.
template <class T, class Index>
struct Transposed {
  const int32_t* ccol;
  const Index* row;
  const int32_t* perm;
  const T* values;
  const uint8_t* mask;  // 0 for values that count as zero; null when all are live
  int64_t stride;
};

// The taps of an input channel in the order in which its non-zeros are sorted.
struct Tap {
  int64_t phase, shift, tap, offset;  // offset into dy for output channel 0, in units
};

inline std::vector<Tap> taps_of(const ConvSizes& s, const Backward& b) {
  std::vector<Tap> result;
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
      const int64_t down = b.g.y.shift[static_cast<size_t>(ky)];
      const int64_t right = b.g.x.shift[static_cast<size_t>(kx)];
      const int64_t up = b.g.y.max_shift - down, left = b.planes ? b.column_of(right) : b.g.x.max_shift - right;
      const int64_t offset = (up * b.dy_row + left * b.dy_column) / b.unit;
      result.push_back({b.g.phase_of(ky, kx), down, ky * s.kernel_w + kx, offset});
    }
  }
  std::stable_sort(result.begin(), result.end(), [](const Tap& p, const Tap& q) {
    return p.phase != q.phase ? p.phase < q.phase : p.shift < q.shift;
  });
  return result;
}

// The entries sorted by (block of output channels, virtual channel, vertical shift).
template <class T, class Offset>
struct Sorted {
  Offset* offset;     // into dy, in units
  T* values;          // those of an entry side by side; null when dx is not wanted
  int32_t* source;    // position of its first value in the weight
  int32_t* pointers;  // [shifts + 1][buckets + 1]: where the shifts of a bucket begin; in the last row, where it ends
  int32_t* cuts;      // [columns of a group][groups * blocks + 1]: scratch

  const int32_t* begin(const Backward& b, int64_t shift) const { return pointers + shift * (b.buckets() + 1); }
};

// All threads of a team call this together, with the rows of an entry; the result is complete when it returns.
template <int Rows, class T, class Index, class Offset>
void sort(const ConvSizes& s, const Backward& b, const std::vector<Tap>& order, const Transposed<T, Index>& w,
          const Sorted<T, Offset>& to, int thread, int team) {
  const int64_t group_rows = s.out_channels / s.groups, group_channels = s.channels / s.groups;
  const int64_t taps = static_cast<int64_t>(order.size()), segments = s.groups * b.blocks, buckets = b.buckets();
  // Where the rows of each block of each group begin in each column.
  const Range columns = share(group_channels * taps, thread, team);
  for (int64_t c = columns.begin; c < columns.end; ++c) {
    int32_t* const cuts = to.cuts + c * (segments + 1);
    int32_t k = w.ccol[c];
    for (int64_t segment = 0; segment < segments; ++segment) {
      cuts[segment] = k;
      const int64_t block = segment % b.blocks + 1;
      const int64_t stop = segment / b.blocks * group_rows + std::min(group_rows, block * b.block_channels);
      while (k < w.ccol[c + 1] && w.row[k] < stop) ++k;
    }
    cuts[segments] = k;
  }
  barrier(team);
  if (thread == 0) {
    int32_t position = 0;
    const int64_t levels = static_cast<int64_t>(b.shifts.size());
    for (int64_t block = 0; block < b.blocks; ++block) {
      for (int64_t channel = 0; channel < s.channels; ++channel) {
        const int64_t segment = channel / group_channels * b.blocks + block;
        const int32_t* const cuts = to.cuts + channel % group_channels * taps * (segments + 1) + segment;
        int32_t* at = to.pointers + block * b.g.virtual_channels + channel * b.g.phases;
        size_t j = 0;
        for (int64_t phase = 0; phase < b.g.phases; ++phase, ++at) {
          for (int64_t level = 0; level < levels; ++level) {
            at[level * (buckets + 1)] = position;
            for (; j < order.size() && order[j].phase == phase && order[j].shift == b.shifts[level]; ++j) {
              const int32_t* const cut = cuts + order[j].tap * (segments + 1);
              position += cut[1] - cut[0];
            }
          }
          at[levels * (buckets + 1)] = position;
        }
      }
    }
    for (int64_t level = 0; level <= levels; ++level) to.pointers[level * (buckets + 1) + buckets] = position;
  }
  barrier(team);
  const Range mine = share(b.blocks * s.channels, thread, team);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t block = i / s.channels, channel = i % s.channels;
    const int64_t segment = channel / group_channels * b.blocks + block;
    const int32_t* const cuts = to.cuts + channel % group_channels * taps * (segments + 1) + segment;
    int64_t position = to.pointers[block * b.g.virtual_channels + channel * b.g.phases];
    for (const Tap& tap : order) {
      const int32_t* const cut = cuts + tap.tap * (segments + 1);
      for (int32_t k = cut[0]; k < cut[1]; ++k, ++position) {
        to.offset[position] = static_cast<Offset>(tap.offset + w.row[k] * (b.dy_pitch / b.unit));
        to.source[position] = w.perm[k];
        if (to.values == nullptr) continue;
        for (int64_t i = 0; i < Rows; ++i) {
          const int64_t at = w.perm[k] + i * w.stride;
          to.values[position * Rows + i] = w.mask == nullptr || w.mask[at] != 0 ? w.values[at] : T(0);
        }
      }
    }
  }
  barrier(team);
}

}  // namespace lth
