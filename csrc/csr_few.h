// csr_linear for batches that do not fill a register: see csr_linear.h for what is computed, csr_few-inl.h for how.
//
// One strip holds the whole batch, and activations that are such a strip already (one sample; a feature-major batch of
// 2, 4 or 8) are read and written where they are.
#pragma once

#include <cstdint>

#include "strips.h"

namespace lth {

// Whether these drivers are for this batch: it fits a strip of csr_few, and that is not the same as a register.
template <class T>
bool is_few(int64_t batch);

template <class T>
bool by_rows(int64_t batch);

template <class T, class Index>
void csr_few_forward(const LinearSizes& sizes, const T* x, Strides x_strides, const T* values, const T* bias, T* y,
                     Strides y_strides, const int32_t* crow, const Index* col, int threads);

template <class T, class Index>
void csr_rows_backward(const LinearSizes& sizes, const T* grad, Strides grad_strides, const T* x, Strides x_strides,
                      const T* values, T* dx, Strides dx_strides, T* dvalues, T* dbias, const int32_t* crow,
                      const Index* col, int threads);

}  // namespace lth

