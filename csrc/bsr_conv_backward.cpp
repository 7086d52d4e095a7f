// Gradients of conv2d(x, W) + bias for a BSR weight, inside the walk of conv_backward.h. Every column of a block has an
// offset of its own: a block is listed as entries of four output channels of one column where its height allows that
// and groups do not cut through it, else as its single live elements.
#include "bsr_conv.h"
#include "conv_backward.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int kPanel = 4;

// Lists the entries of Rows output channels each, by column of the weight.
template <int Rows, class T>
void list(const BsrWeight<T>& w, int64_t rows, int64_t cols, int32_t* ccol, int32_t* row, int32_t* perm) {
  int32_t count = 0;
  for (int64_t c = 0; c < cols; ++c) {
    ccol[c] = count;
    for (int64_t k = w.ccol[c / w.c]; k < w.ccol[c / w.c + 1]; ++k) {
      const int64_t first = int64_t{w.row[k]} * w.r, height = std::min(w.r, rows - first);
      for (int64_t i = 0; i < height; i += Rows) {
        const int64_t at = (int64_t{w.perm[k]} * w.r + i) * w.c + c % w.c;
        if (Rows == 1 && w.mask != nullptr && w.mask[at] == 0) continue;
        row[count] = static_cast<int32_t>(first + i);
        perm[count++] = static_cast<int32_t>(at);
      }
    }
  }
  ccol[cols] = count;
}

template <int Rows, class T>
void with_entries(const ConvSizes& s, const T* grad, const T* activated, const T* x, const BsrWeight<T>& w, T* dx,
                  T* dvalues, T* dbias, bool grad_feature_major, bool x_feature_major, int threads) {
  const int64_t cols = s.channels / s.groups * s.kernel_h * s.kernel_w;
  const int64_t most = w.ccol[ceil_div(cols, w.c)] * w.c * (w.r / Rows);
  Plan plan;
  const size_t ccol_at = plan.add<int32_t>(cols + 1);
  const size_t row_at = plan.add<int32_t>(most);
  const size_t perm_at = plan.add<int32_t>(most);
  const Scratch scratch(plan);
  int32_t* const ccol = scratch.at<int32_t>(ccol_at);
  list<Rows>(w, s.out_channels, cols, ccol, scratch.at<int32_t>(row_at), scratch.at<int32_t>(perm_at));
  backward<Rows>(s, grad, activated, x, dx, dvalues, dbias,
                 Transposed<T, int32_t>{ccol, scratch.at<int32_t>(row_at), scratch.at<int32_t>(perm_at), w.values,
                                        w.mask, w.c},
                 ccol[cols], grad_feature_major, x_feature_major, threads);
}

}  // namespace

template <class T>
void bsr_conv2d_backward(const ConvSizes& s, const T* grad, const T* activated, const T* x,
                         const BsrWeight<T>& w, T* dx, T* dvalues, T* dbias, bool grad_feature_major,
                         bool x_feature_major, int threads) {
  if (dvalues != nullptr) {  // those that are masked or lie over the edge stay zero
    const int64_t cols = s.channels / s.groups * s.kernel_h * s.kernel_w;
    std::memset(dvalues, 0, static_cast<size_t>(w.ccol[ceil_div(cols, w.c)] * w.r * w.c) * sizeof(T));
  }
  // Entries of several output channels have kernels for both gradients and for dW alone.
  const bool panels = w.r % kPanel == 0 && (s.groups == 1 || s.out_channels / s.groups % kPanel == 0);
  if (panels && dvalues != nullptr)
    with_entries<kPanel>(s, grad, activated, x, w, dx, dvalues, dbias, grad_feature_major, x_feature_major, threads);
  else
    with_entries<1>(s, grad, activated, x, w, dx, dvalues, dbias, grad_feature_major, x_feature_major, threads);
}

#define LTH_INSTANTIATE(T)                                                                                        \
  template void bsr_conv2d_backward<T>(const ConvSizes&, const T*, const T*, const T*, const BsrWeight<T>&, T*, T*, \
                                       T*, bool, bool, int);
LTH_INSTANTIATE(float)
LTH_INSTANTIATE(double)

}  // namespace lth
