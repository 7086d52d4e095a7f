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
constexpr int64_t kSerialNonZeros = 1 << 16;  // up to here one thread places them: quicker than waiting for each other

template <class T, class Index, class Offset>
struct CsrWeight {
  const ConvSizes& s;
  const Forward& f;
  typename IndexedKernels<T, Offset>::Spmm spmm;
  const T* values;
  const T* bias;
  const int32_t* crow;
  const Index* col;
  const std::vector<Offset>& by_col;  // offsets, by column of a group's weight
  Offset* offset;                      // by non-zero
  int32_t* pointers;                   // where each block of a row begins: [block][row], and after the last where it ends

  Range channels(int part, int parts) const {
    const int64_t weight = crow[s.out_channels] + kRowCost * s.out_channels;
    return {row_at(crow, s.out_channels, kRowCost, weight * part / parts),
            row_at(crow, s.out_channels, kRowCost, weight * (part + 1) / parts)};
  }

  void place(Range rows) const {
    const int64_t group_rows = s.out_channels / s.groups, block_cols = f.block_channels * s.kernel_h * s.kernel_w;
    const Offset* const table = by_col.data();
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int32_t base = static_cast<int32_t>(r / group_rows * (s.channels / s.groups) * f.channel_units());
      for (int64_t k = crow[r]; k < crow[r + 1]; ++k) offset[k] = static_cast<Offset>(base + table[col[k]]);
      const Index* from = col + crow[r];
      for (int64_t block = 0; block < f.blocks; ++block) {
        pointers[block * s.out_channels + r] = static_cast<int32_t>(from - col);
        from = std::lower_bound(from, col + crow[r + 1], (block + 1) * block_cols,
                                [](Index c, int64_t stop) { return static_cast<int64_t>(c) < stop; });
      }
      pointers[f.blocks * s.out_channels + r] = crow[r + 1];
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

  void multiply(const T* in, Range rows, int64_t block, T* out, int64_t pitch) const {
    const int32_t* const begin = pointers + block * s.out_channels + rows.begin;
    spmm({in, offset, f.unit, values, begin, begin + s.out_channels, rows.end - rows.begin,
          bias == nullptr ? nullptr : bias + rows.begin, block > 0, out + rows.begin * pitch, pitch});
  }
};

template <class T, class Index, class Offset>
void run(const ConvSizes& s, const Forward& f, const Kernels<T>& k, const T* x, const T* values, const T* bias, T* y,
         const int32_t* crow, const Index* col, int threads) {
  std::vector<Offset> by_col;
  for (int64_t c = 0; c < s.channels / s.groups; ++c) {
    for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
        by_col.push_back(static_cast<Offset>(c * f.channel_units() + f.tap(ky, kx)));
      }
    }
  }
  Plan plan;
  const size_t offset_at = plan.add<Offset>(crow[s.out_channels]);
  const size_t pointers_at = plan.add<int32_t>((f.blocks + 1) * s.out_channels);
  const Scratch scratch(plan);
  const CsrWeight<T, Index, Offset> weight{s,
                                           f,
                                           k.template indexed<Offset>().spmm[f.t.tile],
                                           values,
                                           bias,
                                           crow,
                                           col,
                                           by_col,
                                           scratch.at<Offset>(offset_at),
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
