// csr_linear for small batches: see csr_linear.h for what is computed.
//
// The forward pass of a batch that does not fill a register takes strips of 1, 2, 4 or 8 samples (csr_few-inl.h); the
// backward pass of a batch too small to pay for the transposed index goes row by row (csr_few-inl.h,
// csr_scatter-inl.h). Activations that are a strip as they stand (one sample; a feature-major batch as long as the
// strip) are read and written in place.
#pragma once

#include <cstdint>

#include "strips.h"

namespace lth {

// Whether the forward pass is csr_few_forward, the backward pass csr_rows_backward. T is what is computed in.
template <class T>
bool takes_few(int64_t batch);
template <class T>
bool takes_rows(int64_t batch, int64_t nnz);

// S, what memory holds, may be Bf16.
template <class S, class Index>
void csr_few_forward(const LinearSizes& sizes, const S* x, Strides x_strides, const S* values, const S* bias, S* y,
                     Strides y_strides, const int32_t* crow, const Index* col, bool relu, int threads);

template <class T, class Index>
void csr_rows_backward(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides x_strides,
                       const T* values, T* dx, Strides dx_strides, T* dvalues, T* dbias, const int32_t* crow,
                       const Index* col, int threads);

}  // namespace lth
