// y = conv2d(x, W) + bias for a CSR weight: csr_spmm inside the walk of conv_forward.h.
#include "conv_entries.h"
#include "conv_forward.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kRowCost = 4;               // of an output channel, in non-zeros
constexpr double kBlockNonZeros = 15;         // fewer for each row and block are not worth reloading the accumulators
constexpr int64_t kSerialNonZeros = 1 << 16;  // up to here one thread places them: quicker than waiting for each other

template <class T, class Index, class Offset>
struct CsrWeight {
  const Entries<Offset>& entries;
  const IndexedKernels<T, Offset>& kernels;
  int64_t unit;
  const T* values;
  const T* bias;
  const int32_t* crow;
  const Index* col;
  Offset* offset;
  T* sorted;  // values in the order of the entries, where that is not their own; else null

  Range channels(int part, int parts) const {
    const int64_t rows = entries.rows, weight = crow[rows] + kRowCost * rows;
    return {row_at(crow, rows, kRowCost, weight * part / parts),
            row_at(crow, rows, kRowCost, weight * (part + 1) / parts)};
  }

  void prepare(int thread, int team) const {
    const bool serial = crow[entries.rows] <= kSerialNonZeros;
    const Range mine = serial ? Range{0, thread == 0 ? entries.rows : 0} : channels(thread, team);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const Index* const cols = col + crow[r];
      const T* const from = values + crow[r];
      const auto column_of = [&](int64_t k) { return static_cast<int64_t>(cols[k]); };
      const int64_t count = crow[r + 1] - crow[r];
      if (sorted != nullptr) {
        entries.list(r, r, crow[r], count, column_of, [&](int64_t at, int64_t k, Offset o) {
          offset[at] = o;
          sorted[at] = from[k];
        });
      } else {
        entries.list(r, r, crow[r], count, column_of, [&](int64_t at, int64_t, Offset o) { offset[at] = o; });
      }
    }
    barrier(team);
  }

  bool in_place() const { return true; }

  void multiply(const T* in, Range rows, int64_t block, Range taps, const Target<T>& out) const {
    kernels.spmm[out.tile]({in, offset, unit, sorted == nullptr ? values : sorted,
                            entries.begin(block, taps, rows.begin), entries.end(block, taps, rows.begin),
                            rows.end - rows.begin, bias == nullptr ? nullptr : bias + rows.begin, block > 0,
                            out.to + rows.begin * out.to_pitch, out.to_pitch,
                            out.from + rows.begin * out.from_pitch, out.from_pitch, out.place, out.relu, out.far});
  }
};

template <class T, class Index, class Offset>
void run(const ConvSizes& s, const Forward& f, const Kernels<T>& k, const T* x, const T* values, const T* bias, T* y,
         const int32_t* crow, const Index* col, bool relu, int threads) {
  const int64_t nnz = crow[s.out_channels];
  Entries<Offset> entries(s, f, s.out_channels);
  Plan plan;
  const size_t offset_at = plan.add<Offset>(nnz);
  const size_t sorted_at = plan.add<T>(entries.shifts > 1 ? nnz : 0);
  const size_t pointers_at = plan.add<int32_t>(entries.pointer_count());
  const Scratch scratch(plan);
  entries.pointers = scratch.at<int32_t>(pointers_at);
  const CsrWeight<T, Index, Offset> weight{entries,
                                           k.template indexed<Offset>(),
                                           f.unit,
                                           values,
                                           bias,
                                           crow,
                                           col,
                                           scratch.at<Offset>(offset_at),
                                           entries.shifts > 1 ? scratch.at<T>(sorted_at) : nullptr};
  convolve(s, f, k, weight, x, y, relu, threads);
}

}  // namespace

template <class T, class Index>
void csr_conv2d_forward(const ConvSizes& sizes, const T* x, const T* values, const T* bias, T* y, const int32_t* crow,
                        const Index* col, bool relu, int threads) {
  const ConvSizes s = pixels_as_images(sizes);
  if (s.n == 0 || s.out_channels == 0 || s.out_h == 0 || s.out_w == 0) return;
  const Kernels<T>& k = kernels<T>();
  const int64_t nnz = crow[s.out_channels];
  const double work =
      static_cast<double>(nnz + kRowCost * s.out_channels) * static_cast<double>(s.n * s.out_h * s.out_w);
  threads = useful_threads(threads, work);
  const Forward f(s, s.out_channels, static_cast<double>(nnz) / static_cast<double>(s.out_channels), kBlockNonZeros,
                  k.lanes, k.spmm_tile, sizeof(T), threads);
  if (f.span() <= 65536)
    run<T, Index, uint16_t>(s, f, k, x, values, bias, y, crow, col, relu, threads);
  else
    run<T, Index, int32_t>(s, f, k, x, values, bias, y, crow, col, relu, threads);
}

#define LTH_INSTANTIATE(T, Index)                                                                                \
  template void csr_conv2d_forward<T, Index>(const ConvSizes&, const T*, const T*, const T*, T*, const int32_t*, \
                                             const Index*, bool, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
