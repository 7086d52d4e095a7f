// The table through which the drivers (csr_linear, csr_conv) reach the compute kernels of one instruction set.
//
// Two microkernels do all the multiplying. Both see activations as *strips*: `tile` registers of `lanes` values,
// contiguous for each feature, so that a lane is one sample (linear) or one (pixel, image) pair (convolution). A
// non-zero is an offset to the strip it reads, in units of `unit` elements, and a value:
//     csr_spmm      y[r]  = bias[r] + sum_k values[k] * x[offset[k]]                    forward, and dX alone
//     csr_backward  dx[c] = sum_k values[k] * dy[offset[k]],  dw[k] += <x[c], dy[offset[k]]>   both in one pass over dy
//     csr_sddmm     the second half only, for layers whose input needs no gradient
// `transpose` and `sum` pack, unpack and reduce. Drivers know no intrinsics; kernels know no layers, threads or memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu_features.h"

namespace lth {

constexpr int kMaxTile = 8;  // registers in the widest strip; microkernels.def lists the tiles up to here

// rows r in [0, rows): non-zeros [begin[r], end[r]); y rows are y_pitch elements apart.
// accumulate: start from y (a further block of the reduction) instead of from bias (null: zero).
template <class T, class Index>
struct SpmmArgs {
  const T* x;
  const Index* offset;
  int64_t unit;
  const T* values;
  const int32_t* begin;
  const int32_t* end;
  int64_t rows;
  const T* bias;
  bool accumulate;
  T* y;
  int64_t y_pitch;
};

// columns c in [0, cols), non-zeros in column order. dw is indexed by k and always added to. accumulate concerns dx
// only.
template <class T, class Index>
struct BackwardArgs {
  const T* x;
  int64_t x_pitch;
  const T* dy;
  const Index* offset;
  int64_t unit;
  const T* values;
  const int32_t* begin;
  const int32_t* end;
  int64_t cols;
  bool accumulate;
  T* dx;
  int64_t dx_pitch;
  T* dw;
};

template <class T, class Index>
struct IndexedKernels {
  using Spmm = void (*)(const SpmmArgs<T, Index>&);
  using Backward = void (*)(const BackwardArgs<T, Index>&);
  Spmm spmm[kMaxTile + 1] = {};  // by tile; null where the list or the register file has none
  Backward backward[kMaxTile + 1] = {};
  Backward sddmm[kMaxTile + 1] = {};
};

template <class T>
struct Kernels {
  int64_t lanes = 0;      // values in a register
  int64_t spmm_tile = 0;  // widest tile of each kernel
  int64_t backward_tile = 0;
  IndexedKernels<T, uint16_t> u16;
  IndexedKernels<T, int32_t> i32;
  // dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < m, j < n, and zero for m <= i < m_padded.
  void (*transpose)(const T* src, int64_t src_pitch, int64_t m, int64_t n, T* dst, int64_t dst_pitch, int64_t m_padded);
  T (*sum)(const T* src, int64_t n);
  // For each of `runs` runs of n elements, one after the other: `lanes` partial sums, added to `sums` if accumulate.
  void (*add_runs)(const T* src, int64_t runs, int64_t n, bool accumulate, T* sums);
  std::vector<std::string> names;  // one for every microkernel above

  template <class Index>
  const IndexedKernels<T, Index>& indexed() const;
};

template <>
template <>
inline const IndexedKernels<float, uint16_t>& Kernels<float>::indexed<uint16_t>() const {
  return u16;
}
template <>
template <>
inline const IndexedKernels<float, int32_t>& Kernels<float>::indexed<int32_t>() const {
  return i32;
}
template <>
template <>
inline const IndexedKernels<double, uint16_t>& Kernels<double>::indexed<uint16_t>() const {
  return u16;
}
template <>
template <>
inline const IndexedKernels<double, int32_t>& Kernels<double>::indexed<int32_t>() const {
  return i32;
}

struct KernelTable {
  Kernels<float> f32;
  Kernels<double> f64;
};

// One table per instruction set that this build contains; null where it does not.
namespace scalar {
const KernelTable* table();
}
namespace avx2 {
const KernelTable* table();
}
namespace avx512 {
const KernelTable* table();
}

const KernelTable& table_of(Isa isa);  // throws std::invalid_argument when this build has no kernels for isa

template <class T>
const Kernels<T>& kernels();  // those of the instruction set in use
template <>
const Kernels<float>& kernels<float>();
template <>
const Kernels<double>& kernels<double>();

std::vector<std::string> microkernels();  // the names of all of them, runnable here or not

}  // namespace lth
