// 2-D convolutions with a BSR weight: blocks are cut from the matrix [out channels, ci * kernel_h * kernel_w]: r
// neighbouring output channels by c neighbouring columns. See csr_conv.h for the columns and the packing.
#pragma once

#include "bsr_linear.h"
#include "csr_conv.h"

namespace lth {

// y = conv2d(x, W) + bias, x and y both contiguous or both feature-major; bias may be null. Reads crow and col of w.
template <class T>
void bsr_conv2d_forward(const ConvSizes& sizes, const T* x, const BsrWeight<T>& w, const T* bias, T* y, int threads);

}  // namespace lth
