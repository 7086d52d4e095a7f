// Linear layers with a BSR weight: y = x W^T + b and its gradients, from batch-major, feature-major or any strided
// activations.
//
// As csr_linear, but the rows of a block share its columns, so that each strip of x that is read feeds several rows of
// the weight. Blocks may reach over the edge of the weight: activations are packed with zeros there.
#pragma once

#include <cstdint>

#include "strips.h"

namespace lth {

// A block matrix and the index of its transpose. Entries of a stored block that `mask` names 0 count as zero whatever
// is stored there, and so does their gradient; all are live where it is null.
template <class T>
struct BsrWeight {
  int64_t r, c;
  const T* values;  // [nblocks, r, c]
  const uint8_t* mask;
  const int32_t* crow;  // [block rows + 1]
  const int32_t* col;   // [nblocks]
  const int32_t* ccol;  // [block columns + 1]
  const int32_t* row;   // [nblocks], in column order
  const int32_t* perm;  // [nblocks]: where in `values` the blocks are, in column order
};

// y[n, o] = bias[o] + sum over i of W[o, i] x[n, i]; bias may be null. With relu, max(y, 0), NaN as it is. Reads
// crow and col.
template <class T>
void bsr_linear_forward(const LinearSizes& sizes, const T* x, Strides x_strides, const BsrWeight<T>& w, const T* bias,
                        T* y, Strides y_strides, bool relu, int threads);

// The same for a few samples, where bsr_takes_few says that it is the faster way. S may be Bf16.
bool bsr_takes_few(int64_t batch, int64_t r, int64_t c);
template <class S>
void bsr_few_forward(const LinearSizes& sizes, const S* x, Strides x_strides, const BsrWeight<S>& w, const S* bias,
                     S* y, Strides y_strides, bool relu, int threads);

// dx[n, i] = sum over o of W[o, i] grad[n, o];  dvalues: sum over n of grad[n, o] x[n, i];  dbias[o] = sum over n of
// grad[n, o]. Any may be null. Reads ccol, row and perm.
template <class T>
void bsr_linear_backward(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides x_strides,
                         const BsrWeight<T>& w, T* dx, Strides dx_strides, T* dvalues, T* dbias, int threads);

}  // namespace lth
