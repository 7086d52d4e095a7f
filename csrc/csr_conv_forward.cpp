// y = conv2d(x, W) + bias for a CSR weight: csr_spmm inside the walk of conv_forward.h.
#include "conv_forward.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kRowCost = 4;               // of an output channel, in non-zeros
constexpr double kBlockNonZeros = 10;         // fewer for each row and block are not worth reloading the accumulators
constexpr int64_t kMaxShifts = 16;            // non-zeros are sorted by row shift if there are no more
constexpr double kSortCost = 1;               // of sorting a non-zero, in multiplications by a strip
constexpr int64_t kSerialNonZeros = 1 << 16;  // up to here one thread places them: quicker than waiting for each other

template <class Offset>
struct Column {
  Offset offset;  // from the strip of its output, in units
  Offset shift;   // in virtual rows
};

template <class T, class Index, class Offset>
struct CsrWeight {
  const ConvSizes& s;
  const Forward& f;
  typename IndexedKernels<T, Offset>::Spmm spmm;
  const T* values;
  const T* bias;
  const int32_t* crow;
  const Index* col;
  const std::vector<Column<Offset>>& columns;  // of a group's weight
  int64_t shifts;     // different row shifts that non-zeros are kept apart by
  Offset* offset;     // by non-zero
  T* sorted;          // values in the order of the offsets, where that is not their own; else null
  int32_t* pointers;  // [block][shift][row]: where each part of a row begins, and after the last where it ends

  Range channels(int part, int parts) const {
    const int64_t weight = crow[s.out_channels] + kRowCost * s.out_channels;
    return {row_at(crow, s.out_channels, kRowCost, weight * part / parts),
            row_at(crow, s.out_channels, kRowCost, weight * (part + 1) / parts)};
  }

  // Non-zeros [begin, end), a block of one row, from there on in the order of their shifts.
  void sort(int64_t begin, int64_t end, int32_t base, int32_t* pointer) const {
    int32_t at[kMaxShifts + 1] = {};
    for (int64_t k = begin; k < end; ++k) ++at[columns[col[k]].shift + 1];
    at[0] = static_cast<int32_t>(begin);
    for (int64_t q = 0; q < shifts; ++q) {
      pointer[q * s.out_channels] = at[q];
      at[q + 1] += at[q];
    }
    for (int64_t k = begin; k < end; ++k) {
      const Column<Offset> c = columns[col[k]];
      const int32_t to = at[c.shift]++;
      offset[to] = static_cast<Offset>(base + c.offset);
      sorted[to] = values[k];
    }
  }

  void place(Range rows) const {
    const int64_t group_rows = s.out_channels / s.groups, block_cols = f.block_channels * s.kernel_h * s.kernel_w;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int32_t base = static_cast<int32_t>(r / group_rows * (s.channels / s.groups) * f.channel_units());
      const Index *const end = col + crow[r + 1], *from = col + crow[r];
      for (int64_t block = 0; block < f.blocks; ++block) {
        const Index* const to = std::lower_bound(
            from, end, (block + 1) * block_cols, [](Index c, int64_t stop) { return static_cast<int64_t>(c) < stop; });
        if (shifts > 1) {
          sort(from - col, to - col, base, pointers + block * shifts * s.out_channels + r);
        } else {
          pointers[block * s.out_channels + r] = static_cast<int32_t>(from - col);
          for (const Index* c = from; c < to; ++c) offset[c - col] = static_cast<Offset>(base + columns[*c].offset);
        }
        from = to;
      }
      pointers[f.blocks * shifts * s.out_channels + r] = crow[r + 1];
    }
  }

  void prepare(int thread, int team) const {
    if (crow[s.out_channels] <= kSerialNonZeros) {
      if (thread == 0) place({0, s.out_channels});
    } else {
      place(channels(thread, team));
    }
    barrier(team);
  }

  void multiply(const T* in, Range rows, int64_t block, Range taps, T* out, int64_t pitch) const {
    const int64_t first = shifts > 1 ? taps.begin : 0, last = shifts > 1 ? taps.end : 1;
    const int32_t* const begin = pointers + (block * shifts + first) * s.out_channels + rows.begin;
    spmm({in, offset, f.unit, sorted == nullptr ? values : sorted, begin, begin + (last - first) * s.out_channels,
          rows.end - rows.begin, bias == nullptr ? nullptr : bias + rows.begin, block > 0, out + rows.begin * pitch,
          pitch});
  }
};

// Whether to leave out the non-zeros that would only meet the rows of zeros above and below the image: their share of
// the work against that of sorting them.
bool skips_padding(const ConvSizes& s, const Forward& f) {
  if (f.t.joined > 1 || f.g.y.phases() > 1 || f.g.y.max_shift == 0 || f.g.y.max_shift >= kMaxShifts) return false;
  double idle = 0;
  for (int64_t row = 0; row < s.out_h; ++row) {
    const Range taps = f.taps(row);
    idle += 1 - static_cast<double>(taps.end - taps.begin) / static_cast<double>(f.g.y.max_shift + 1);
  }
  return idle * static_cast<double>(f.t.blocks * f.t.strips) > kSortCost;
}

template <class T, class Index, class Offset>
void run(const ConvSizes& s, const Forward& f, const Kernels<T>& k, const T* x, const T* values, const T* bias, T* y,
         const int32_t* crow, const Index* col, int threads) {
  std::vector<Column<Offset>> columns;
  for (int64_t c = 0; c < s.channels / s.groups; ++c) {
    for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
        columns.push_back({static_cast<Offset>(c * f.channel_units() + f.tap(ky, kx)),
                           static_cast<Offset>(f.g.y.shift[static_cast<size_t>(ky)])});
      }
    }
  }
  const int64_t nnz = crow[s.out_channels], shifts = skips_padding(s, f) ? f.g.y.max_shift + 1 : 1;
  Plan plan;
  const size_t offset_at = plan.add<Offset>(nnz);
  const size_t sorted_at = plan.add<T>(shifts > 1 ? nnz : 0);
  const size_t pointers_at = plan.add<int32_t>((f.blocks * shifts + 1) * s.out_channels);
  const Scratch scratch(plan);
  const CsrWeight<T, Index, Offset> weight{s,
                                           f,
                                           k.template indexed<Offset>().spmm[f.t.tile],
                                           values,
                                           bias,
                                           crow,
                                           col,
                                           columns,
                                           shifts,
                                           scratch.at<Offset>(offset_at),
                                           shifts > 1 ? scratch.at<T>(sorted_at) : nullptr,
                                           scratch.at<int32_t>(pointers_at)};
  convolve(s, f, k, weight, x, y, threads);
}

}  // namespace

template <class T, class Index>
void csr_conv2d_forward(const ConvSizes& sizes, const T* x, const T* values, const T* bias, T* y, const int32_t* crow,
                        const Index* col, int threads) {
  const ConvSizes s = pixels_as_images(sizes);
  if (s.n == 0 || s.out_channels == 0 || s.out_h == 0 || s.out_w == 0) return;
  const Kernels<T>& k = kernels<T>();
  const int64_t nnz = crow[s.out_channels];
  const double work = static_cast<double>(nnz + kRowCost * s.out_channels) *
                      static_cast<double>(s.n * s.out_h * s.out_w);
  threads = useful_threads(threads, work);
  const Forward f(s, static_cast<double>(nnz) / static_cast<double>(s.out_channels), kBlockNonZeros, k.lanes,
                  k.spmm_tile, sizeof(T), threads);
  if (f.span() <= 65536)
    run<T, Index, uint16_t>(s, f, k, x, values, bias, y, crow, col, threads);
  else
    run<T, Index, int32_t>(s, f, k, x, values, bias, y, crow, col, threads);
}

#define LTH_INSTANTIATE(T, Index)                                                                                \
  template void csr_conv2d_forward<T, Index>(const ConvSizes&, const T*, const T*, const T*, T*, const int32_t*, \
                                             const Index*, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
