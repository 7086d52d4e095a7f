// How the forward pass of a convolution lists a sparse weight: each row (or panel of rows) as entries, one for every
// column (ci, ky, kx) that it has, in the order in which a walk over the output wants them.
//
// Entries are kept apart by block of the reduction and, within it, by row shift, so that a row of the output at the
// upper or lower edge of the image leaves out the entries that would only meet padding.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_forward.h"
#include "csr_conv.h"

namespace lth {

constexpr int64_t kMaxShifts = 16;  // entries are kept apart by row shift if there are no more
constexpr double kSortCost = 1;     // of sorting an entry, in multiplications by a strip

template <class Offset>
struct Column {
  Offset offset;  // from the strip of its output, in units
  Offset shift;   // in virtual rows
};

template <class Offset>
struct Entries {
  const ConvSizes& s;
  const Forward& f;
  int64_t rows;    // rows (panels) that are listed
  int64_t shifts;  // 1 where entries are not kept apart by shift
  std::vector<Column<Offset>> columns;  // of a group's weight
  int32_t* pointers;                    // [block][shift][row]: where each part of a row begins; last, where rows end

  Entries(const ConvSizes& sizes, const Forward& forward, int64_t count)
      : s(sizes), f(forward), rows(count), shifts(skips_padding() ? f.g.y.max_shift + 1 : 1), pointers(nullptr) {
    for (int64_t c = 0; c < s.channels / s.groups; ++c) {
      for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
          columns.push_back({static_cast<Offset>(c * f.channel_units() + f.tap(ky, kx)),
                             static_cast<Offset>(f.g.y.shift[static_cast<size_t>(ky)])});
        }
      }
    }
  }

  int64_t pointer_count() const { return (f.blocks * shifts + 1) * rows; }

  // Whether leaving out entries saves more than sorting them costs.
  bool skips_padding() const {
    if (f.t.joined > 1 || f.g.y.phases() > 1 || f.g.y.max_shift == 0 || f.g.y.max_shift >= kMaxShifts) return false;
    double idle = 0;
    for (int64_t row = 0; row < s.out_h; ++row) {
      const Range taps = f.taps(row);
      idle += 1 - static_cast<double>(taps.end - taps.begin) / static_cast<double>(f.g.y.max_shift + 1);
    }
    return idle * static_cast<double>(f.t.blocks * f.t.strips) > kSortCost;
  }

  // Lists a row whose columns are column_of(k), ascending for k in [0, count), at positions from `start` on:
  // put(position, k, offset) for each. out_channel: says which group of channels it reads.
  template <class ColumnOf, class Put>
  void list(int64_t row, int64_t out_channel, int64_t start, int64_t count, ColumnOf column_of, Put put) const {
    const int64_t group = out_channel / (s.out_channels / s.groups), taps = s.kernel_h * s.kernel_w;
    const Offset base = static_cast<Offset>(group * (s.channels / s.groups) * f.channel_units());
    const Column<Offset>* const table = columns.data();
    int32_t* pointer = pointers + row;
    int64_t k = 0;
    for (int64_t block = 0; block < f.blocks; ++block) {
      const int64_t stop = block + 1 == f.blocks ? INT64_MAX : (block + 1) * f.block_channels * taps;
      if (shifts == 1) {
        *pointer = static_cast<int32_t>(start + k);
        pointer += rows;
        for (int64_t column; k < count && (column = column_of(k)) < stop; ++k)
          put(start + k, k, static_cast<Offset>(base + table[column].offset));
        continue;
      }
      int32_t at[kMaxShifts + 1] = {};
      const int64_t first = k;
      for (int64_t column; k < count && (column = column_of(k)) < stop; ++k) ++at[table[column].shift + 1];
      at[0] = static_cast<int32_t>(start + first);
      for (int64_t q = 0; q < shifts; ++q, pointer += rows) {
        *pointer = at[q];
        at[q + 1] += at[q];
      }
      for (int64_t i = first; i < k; ++i) {
        const Column<Offset> c = table[column_of(i)];
        put(at[c.shift]++, i, static_cast<Offset>(base + c.offset));
      }
    }
    *pointer = static_cast<int32_t>(start + count);
  }

  // Where the entries of rows from `row` on begin and end that belong to a block and to the taps of an output row.
  const int32_t* begin(int64_t block, Range taps, int64_t row) const {
    return pointers + (block * shifts + (shifts > 1 ? taps.begin : 0)) * rows + row;
  }
  const int32_t* end(int64_t block, Range taps, int64_t row) const {
    return pointers + (block * shifts + (shifts > 1 ? taps.end : 1)) * rows + row;
  }
};

}  // namespace lth
