// 2-D convolutions with a BSR weight: blocks are cut from the matrix [out channels, ci * kernel_h * kernel_w]: r
// neighbouring output channels by c neighbouring columns. See csr_conv.h for the columns and the packing.
#pragma once

#include "bsr_linear.h"
#include "csr_conv.h"

namespace lth {

// y = conv2d(x, W) + bias, x and y both contiguous or both feature-major; bias may be null. relu: y is the
// maximum of that and zero. Reads crow and col of w.
template <class T>
void bsr_conv2d_forward(const ConvSizes& sizes, const T* x, const BsrWeight<T>& w, const T* bias, T* y, bool relu,
                        int threads);

// Gradients with respect to x, values and bias, given that of y; any of the three may be null. Formats as in
// csr_conv2d_backward. Reads ccol, row and perm of w.
template <class T>
void bsr_conv2d_backward(const ConvSizes& sizes, const T* grad, const T* activated, const T* x,
                         const BsrWeight<T>& w, T* dx, T* dvalues, T* dbias, bool grad_feature_major,
                         bool x_feature_major, int threads);

}  // namespace lth
