// 2-D convolutions with a CSR weight: the linear microkernels over strips whose lanes are neighbouring pixels of
// several images.
//
// Activations are packed to [row][channel][column][image]: with the images innermost, a shift by one pixel is a shift
// by a whole vector, and a non-zero (channel, ky, kx) is one constant offset, the same for every output pixel. Strides
// are removed first: each input channel becomes one virtual channel per phase of the stride, on which the convolution
// has stride 1 (conv_geometry.h). Each thread packs the few rows it is about to use, computes, and unpacks, all within
// its own cache.
//
// Where rows of pixels fill registers by themselves, contiguous images are packed one by one instead, once for each tap
// of a row: [row][channel][tap of the row][column], each copy moved sideways by its tap. Nothing is transposed, no load
// straddles cache lines, and the lanes of y lie in memory as they do in the strips. Which of the two costs less is an
// estimate (tile_plane).
#pragma once

#include <cstdint>

namespace lth {

struct ConvSizes {
  int64_t n, channels, height, width, out_channels, groups, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
      dilation_h, dilation_w, out_h, out_w;
  bool feature_major = false;  // x and y [n, c, h, w] whose memory is [c, h, w, n], with n >= 2; else contiguous
};

void check(
    const ConvSizes& sizes);  // std::invalid_argument, naming the size, when they cannot be those of a convolution

// y = conv2d(x, W) + bias, x and y both contiguous or both feature-major; column (ci * kernel_h + ky) * kernel_w + kx
// of W, ci within the group. bias may be null. relu: y is the maximum of that and zero.
template <class T, class Index>
void csr_conv2d_forward(const ConvSizes& sizes, const T* x, const T* values, const T* bias, T* y, const int32_t* crow,
                        const Index* col, bool relu, int threads);

// Gradients with respect to x, values and bias, given that of y. Any of the three may be null. Feature-major: memory
// is [C, H, W, N]; dx has the format of x. activated: what a ReLU made of y, in the format of grad, which then is the
// gradient of that; or null.
template <class T, class Index>
void csr_conv2d_backward(const ConvSizes& sizes, const T* grad, const T* activated, const T* x, const T* values, T* dx,
                         T* dvalues, T* dbias, const int32_t* ccol, const Index* row, const int32_t* perm,
                         bool grad_feature_major, bool x_feature_major, int threads);

}  // namespace lth
