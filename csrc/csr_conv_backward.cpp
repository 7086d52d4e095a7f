// Gradients of conv2d(x, W) + bias for a CSR weight: its non-zeros are the entries of conv_backward.h.
#include "conv_backward.h"
#include "csr_conv.h"

namespace lth {

template <class T, class Index>
void csr_conv2d_backward(const ConvSizes& sizes, const T* grad, const T* activated, const T* x, const T* values, T* dx,
                         T* dvalues, T* dbias, const int32_t* ccol, const Index* row, const int32_t* perm,
                         bool grad_feature_major, bool x_feature_major, int threads) {
  const int64_t nnz = sizes.channels == 0 ? 0 : ccol[sizes.channels / sizes.groups * sizes.kernel_h * sizes.kernel_w];
  backward<1>(sizes, grad, activated, x, dx, dvalues, dbias,
              Transposed<T, Index>{ccol, row, perm, values, nullptr, 1}, nnz, grad_feature_major, x_feature_major,
              threads);
}

#define LTH_INSTANTIATE(T, Index)                                                                                   \
  template void csr_conv2d_backward<T, Index>(const ConvSizes&, const T*, const T*, const T*, const T*, T*, T*, T*, \
                                              const int32_t*, const Index*, const int32_t*, bool, bool, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
