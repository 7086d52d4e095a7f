// Linear layers with a CSR weight: y = x W^T + b and its gradients, from batch-major, feature-major or any strided
// activations.
//
// The batch is cut into strips of `tile` registers. x is packed to [strip][feature][lanes], rows of the weight are
// shared among threads by their non-zeros, and each finished group of rows is transposed into y while it is hot. All in
// one parallel region.
#pragma once

#include <cstdint>

#include "strips.h"

namespace lth {

// y[n, r] = bias[r] + sum over k in [crow[r], crow[r+1]) of values[k] * x[n, col[k]]; bias may be null. With relu,
// max(y, 0), NaN as it is.
template <class T, class Index>
void csr_linear_forward(const LinearSizes& sizes, const T* x, Strides x_strides, const T* values, const T* bias, T* y,
                        Strides y_strides, const int32_t* crow, const Index* col, bool relu, int threads);

// dx[n, c] = sum_r v[r, c] grad[n, r];  dvalues[k] = sum_n grad[n, row] x[n, col];  dbias[r] = sum_n grad[n, r]. Any
// of these may be null.
template <class T, class Index>
void csr_linear_backward(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides x_strides,
                         const T* values, T* dx, Strides dx_strides, T* dvalues, T* dbias, const int32_t* crow,
                         const Index* col, const int32_t* ccol, const Index* row, const int32_t* perm, int threads);

}  // namespace lth
