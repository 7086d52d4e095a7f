// What the backward pass of a convolution prepares: its tiling, and the weight sorted by input channel.
//
// An input pixel meets output (y - shift): with dy packed to [row][output channel][column][image] and bordered with
// zeros, a non-zero is again one constant offset. `sort` is a counting sort by (block of output channels, virtual input
// channel); the blocks are what of dy fits into an L1 cache, and are used where they leave enough non-zeros to each
// channel.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "conv_geometry.h"
#include "conv_rows.h"
#include "csr_conv.h"
#include "parallel.h"

namespace lth {

constexpr int64_t kDyBandBytes = 512 << 10;  // of packed x and dy rows that a thread keeps: half of an L2 cache
constexpr int64_t kDyBlockBytes = 32 << 10;  // of dy that one block may touch: most of an L1 cache
constexpr int64_t kDyBlockNonZeros = 8;      // fewer for each channel and block are not worth reloading x and dx

struct Backward {
  Geometry g;
  RowTiling t;
  int64_t dy_pitch;       // elements in a packed row of one output channel
  int64_t unit;           // of the offsets: one pixel of all images, or a whole row where no tap moves along it
  int64_t dy_row, x_row;  // elements in a row of all output channels, of all virtual input channels
  int64_t band;           // virtual input rows
  int64_t block_channels, blocks;  // output channels of a group that are processed together
  RowMap dy_map;
  std::vector<RowMap> maps;  // by x phase

  Backward(const ConvSizes& s, int64_t nnz, int64_t vector_lanes, int64_t widest, int64_t bytes) : g(s) {
    const Range u = g.x.any;
    const bool shifts = g.x.max_shift > 0;
    t = tile_rows(s.n, u.end - u.begin, shifts, vector_lanes, widest);
    const int64_t grain = shifts ? t.images : round_up(t.images, vector_lanes);
    dy_pitch = round_up(g.x.max_shift * t.images + t.row_lanes, grain);
    // Power-of-two pitches would put all channels into few cache sets.
    if (dy_pitch * bytes % 512 == 0) dy_pitch += grain;
    unit = shifts ? t.images : dy_pitch;
    dy_row = s.out_channels * dy_pitch;
    x_row = g.virtual_channels * t.row_lanes;
    band = (kDyBandBytes / bytes - g.y.max_shift * dy_row) / std::max<int64_t>(1, dy_row + x_row);
    band = std::min(std::max(band, std::max<int64_t>(1, g.y.max_shift)),
                    std::max<int64_t>(1, g.y.any.end - g.y.any.begin));

    // Columns of dy that no pixel of x meets are left out.
    const int64_t first = std::max<int64_t>(0, u.begin - g.x.max_shift);
    const int64_t lead = std::max<int64_t>(0, g.x.max_shift - u.begin);
    dy_map = {lead, first, 1, std::max<int64_t>(0, std::min(s.out_w, u.end) - first)};
    for (int64_t f = 0; f < g.x.phases(); ++f) {
      const Range r = g.x.inside[static_cast<size_t>(f)];
      const bool empty = r.begin == r.end;
      maps.push_back({empty ? 0 : r.begin - u.begin, empty ? 0 : g.x.real(r.begin, f), g.x.stride, r.end - r.begin});
    }

    const int64_t group_rows = s.out_channels / s.groups;
    const int64_t touched = (g.y.max_shift + 1) * (t.lanes + g.x.max_shift * t.images) * bytes;
    block_channels = std::max<int64_t>(1, kDyBlockBytes / touched);
    blocks = ceil_div(group_rows, block_channels);
    if (blocks > 1 && nnz < kDyBlockNonZeros * g.virtual_channels * blocks) blocks = 1;
    block_channels = std::max<int64_t>(1, ceil_div(group_rows, std::max<int64_t>(1, blocks)));
    blocks = std::max<int64_t>(1, ceil_div(group_rows, block_channels));
  }
};

// For each column of a group's weight: its virtual channel within the group, and its offset into dy for output channel
// 0.
struct Column {
  int32_t channel;
  int64_t offset;
};

inline std::vector<Column> columns_of(const ConvSizes& s, const Backward& b) {
  std::vector<Column> result;
  for (int64_t c = 0; c < s.channels / s.groups; ++c) {
    for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
        const int64_t up = b.g.y.max_shift - b.g.y.shift[static_cast<size_t>(ky)];
        const int64_t left = b.g.x.max_shift - b.g.x.shift[static_cast<size_t>(kx)];
        result.push_back({static_cast<int32_t>(c * b.g.phases + b.g.phase_of(ky, kx)),
                          (up * b.dy_row + left * b.t.images) / b.unit});
      }
    }
  }
  return result;
}

// The non-zeros sorted by (block of output channels, virtual channel), and within those by output channel.
template <class T, class Offset>
struct Sorted {
  Offset* offset;     // into dy, in units
  T* values;          // null when dx is not wanted
  int32_t* source;    // position in CSR order
  int32_t* pointers;  // [blocks * virtual channels + 1]
  int32_t* counts;    // [threads][blocks * virtual channels]: scratch
};

// All threads of a team call this together; the result is complete when it returns.
template <class T, class Index, class Offset>
void sort(const ConvSizes& s, const Backward& b, const std::vector<Column>& columns, const int32_t* crow,
          const Index* col, const T* values, const Sorted<T, Offset>& to, int thread, int team) {
  const int64_t group_rows = s.out_channels / s.groups, group_channels = b.g.virtual_channels / s.groups;
  const int64_t buckets = b.blocks * b.g.virtual_channels;
  const int64_t weight = crow[s.out_channels] + s.out_channels;
  const Range rows{row_at(crow, s.out_channels, 1, weight * thread / team),
                   row_at(crow, s.out_channels, 1, weight * (thread + 1) / team)};
  const auto first_bucket = [&](int64_t row) {
    return row % group_rows / b.block_channels * b.g.virtual_channels + row / group_rows * group_channels;
  };
  int32_t* const mine = to.counts + thread * buckets;
  std::memset(mine, 0, static_cast<size_t>(buckets) * sizeof(int32_t));
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    int32_t* const bucket = mine + first_bucket(r);
    for (int64_t k = crow[r]; k < crow[r + 1]; ++k) ++bucket[columns[static_cast<size_t>(col[k])].channel];
  }
  barrier(team);
  if (thread == 0) {
    int32_t position = 0;
    for (int64_t i = 0; i < buckets; ++i) {
      to.pointers[i] = position;
      for (int other = 0; other < team; ++other) {
        const int32_t count = to.counts[other * buckets + i];
        to.counts[other * buckets + i] = position;
        position += count;
      }
    }
    to.pointers[buckets] = position;
  }
  barrier(team);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    int32_t* const bucket = mine + first_bucket(r);
    for (int64_t k = crow[r]; k < crow[r + 1]; ++k) {
      const Column& column = columns[static_cast<size_t>(col[k])];
      const int32_t position = bucket[column.channel]++;
      to.offset[position] = static_cast<Offset>(column.offset + r * b.dy_pitch / b.unit);
      to.source[position] = static_cast<int32_t>(k);
      if (to.values != nullptr) to.values[position] = values[k];
    }
  }
  barrier(team);
}

}  // namespace lth
