// The table through which the drivers (csr_linear, csr_conv) reach the compute kernels of one instruction set.
//
// Two microkernels do all the multiplying. Both see activations as *strips*: `tile` registers of `lanes` values,
// contiguous for each feature, so that a lane is one sample (linear) or one (pixel, image) pair (convolution). A
// non-zero is an offset to the strip it reads, in units of `unit` elements, and a value:
//     csr_spmm      y[r]  = bias[r] + sum_k values[k] * x[offset[k]]                    forward, and dX alone
//     csr_backward  dx[c] = sum_k values[k] * dy[offset[k]],  dw[k] += <x[c], dy[offset[k]]>   both in one pass over dy
//     csr_sddmm     the second half only, for layers whose input needs no gradient
// For small batches (csr_small.h):
//     csr_few, csr_fewgrad  strips narrower than a register
//     csr_scatter           what csr_backward computes, in the weight's own order
// Where whole blocks of the weight are kept (BSR), R adjacent rows share their columns; R rows by `tile` registers of
// accumulators then make each strip that is read feed R multiply-adds:
//     bsr_spmm      y[r + i] = bias[r + i] + sum_k values[k][i] * x[offset[k]], i < R           forward, and dX alone
//     bsr_backward  dx[c] = sum_k sum_i values[k][i] * dy_i[offset[k]],  dw[k][i] += <x[c], dy_i[offset[k]]>
//     bsr_sddmm     the second half only
//     bsr_outer     dw[i][j] += <x_j, dy_i> for a block of several columns, over many strips before anything is summed
//     bsr_gemv      y = W x + bias for a single sample
// `transpose`, `copy_runs`, `shift_rows`, `gate` and `sum` pack, unpack and reduce. Drivers know no intrinsics; kernels
// know no layers, threads or memory. Of bfloat16 there are the ways in and out of registers, and the kernels that read
// the weight once or twice and no more (Bf16Kernels): whatever uses it more often had better read floats.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bf16.h"
#include "cpu_features.h"

namespace lth {

constexpr int kMaxTile = 8;   // registers in the widest strip; microkernels.def lists the tiles up to here
constexpr int kMaxFew = 8;    // samples in the widest strip that is narrower than a register
constexpr int kMaxPanel = 8;  // rows of the weight that share their columns, at most, in one call of a bsr kernel

// Where a register goes: its first `lanes` lanes to element `at` of a row of y, the others nowhere.
struct Place {
  int64_t at, lanes;
};

// rows r in [0, rows): non-zeros [begin[r], end[r]); y rows are y_pitch elements apart.
// accumulate: start from `from`, or from y where that is null (a further block of the reduction), instead of from bias
// (null: zero). Registers of a row of y go to `place`, one for each; where that is null they are adjacent, as those of
// `from` always are. relu: store max(y, 0), NaN as it is; for the last block of the reduction.
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
  const T* from = nullptr;
  int64_t from_pitch = 0;
  const Place* place = nullptr;
  bool relu = false;
  bool ahead = false;  // ask memory for a row of y before it is written
};

// columns c in [0, cols), non-zeros in column order. dw is indexed by k and always added to. accumulate concerns dx
// only. tail: how many elements of the last register of x and dx exist, where not all do (0): nothing beyond them is
// read or written, and what dy has there does not count unless it is not finite.
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
  int tail = 0;
};

// Strips of fewer samples than a register has lanes, without gaps: x is [cols][lanes], y and dy are [rows][lanes]. Rows
// as in SpmmArgs; `ahead` asks memory for the weight in advance, worth its cost for one that fits no cache.
template <class T, class Index, class Stored = T>
struct FewArgs {
  const T* x;
  const Index* col;
  const Stored* values;
  const int32_t* begin;
  const int32_t* end;
  int64_t rows;
  const Stored* bias;
  bool ahead;
  T* y;
};

// Both gradients row by row, for csr_fewgrad and csr_scatter. dx [cols][lanes] is added to, dw written at the
// non-zeros of the rows, or added to; one of the two may be null.
template <class T, class Index>
struct ScatterArgs {
  const T* x;
  const T* dy;
  const Index* col;
  const T* values;
  const int32_t* begin;
  const int32_t* end;
  int64_t rows;
  bool ahead;       // for csr_fewgrad
  bool accumulate;  // add to dw, for csr_scatter
  T* dx;
  T* dw;
};

// Panels p in [0, panels) of R adjacent rows, panel_rows rows apart: entries [begin[p], end[p]). An entry is `width`
// columns: column j reads the strip at x + offset[k] * unit + j * x_pitch, and its value in row i of the panel is
//     values[at * entry_stride + i * row_stride + j * column_stride],  at = position[k], or k where position is null.
// So the blocks of a BSR weight are entries as they are stored. Where each column has an offset of its own, entries are
// single columns and position names them. bias[p * panel_rows + i], or null; accumulate, from, place and relu as in
// SpmmArgs; row i of panel p is written to y + (p * panel_rows + i) * y_pitch. While an entry is computed, the first
// `prefetch` elements of the next one are fetched.
template <class T, class Index>
struct BsrSpmmArgs {
  const T* x;
  const Index* offset;
  int64_t unit;
  int64_t width;
  int64_t x_pitch;
  const T* values;
  const int32_t* position;
  int64_t entry_stride;
  int64_t row_stride;
  int64_t column_stride;
  int64_t prefetch;
  const int32_t* begin;
  const int32_t* end;
  int64_t panels;
  int64_t panel_rows;
  const T* bias;
  bool accumulate;
  T* y;
  int64_t y_pitch;
  bool relu = false;
  const T* from = nullptr;
  int64_t from_pitch = 0;
  const Place* place = nullptr;
};

// As BackwardArgs, but an entry is R adjacent rows of dy, dy_pitch elements apart: row i at dy + offset[k] * unit +
// i * dy_pitch, its value values[k * R + i], its gradient dw[k * R + i].
template <class T, class Index>
struct BsrBackwardArgs {
  const T* x;
  int64_t x_pitch;
  const T* dy;
  const Index* offset;
  int64_t unit;
  int64_t dy_pitch;
  const T* values;
  const int32_t* begin;
  const int32_t* end;
  int64_t cols;
  bool accumulate;
  T* dx;
  int64_t dx_pitch;
  T* dw;
  int tail = 0;
};

// dw[i * dw_pitch + j] += sum over the `registers` registers of each of the `strips` strips of dy_i * x_j, for i < rows
// and j < cols: row i of strip s is at dy + s * dy_strip + i * pitch, column j at x + s * x_strip + j * pitch.
template <class T>
struct BsrOuterArgs {
  const T* x;
  int64_t x_strip;
  const T* dy;
  int64_t dy_strip;
  int64_t pitch;
  int64_t strips;
  int64_t registers;
  int64_t rows;
  int64_t cols;
  T* dw;
  int64_t dw_pitch;
};

// One sample: y[p * r + i] = bias[p * r + i] + sum over the blocks k in [begin[p], end[p]) and their columns j of
// values[(k * r + i) * c + j] * x[col[k] * c + j]; bias may be null.
template <class T, class Stored = T>
struct BsrGemvArgs {
  const T* x;
  const int32_t* col;
  const Stored* values;
  int64_t r;
  int64_t c;
  const int32_t* begin;
  const int32_t* end;
  int64_t block_rows;
  const Stored* bias;
  T* y;
};

// As SpmmArgs without blocks, for strips of bfloat16; y in floats.
template <class Index>
struct DotArgs {
  const Bf16* x;
  const Index* offset;
  int64_t unit;
  const Bf16* values;
  const int32_t* begin;
  const int32_t* end;
  int64_t rows;
  const Bf16* bias;
  float* y;
  int64_t y_pitch;
};

// Panels as in BsrGemvArgs, of strips of bfloat16: x is [cols][lanes], y is [rows][lanes]; c is even.
struct BsrDotArgs {
  const Bf16* x;
  const int32_t* col;
  const Bf16* values;
  int64_t r;
  int64_t c;
  const int32_t* begin;
  const int32_t* end;
  int64_t block_rows;
  const Bf16* bias;
  float* y;
};

template <class T, class Index>
struct IndexedKernels {
  using Spmm = void (*)(const SpmmArgs<T, Index>&);
  using Backward = void (*)(const BackwardArgs<T, Index>&);
  using BsrSpmm = void (*)(const BsrSpmmArgs<T, Index>&);
  using BsrBackward = void (*)(const BsrBackwardArgs<T, Index>&);
  Spmm spmm[kMaxTile + 1] = {};  // by tile; null where the list or the register file has none
  Backward backward[kMaxTile + 1] = {};
  Backward sddmm[kMaxTile + 1] = {};
  using Few = void (*)(const FewArgs<T, Index>&);
  using Scatter = void (*)(const ScatterArgs<T, Index>&);
  Few few[kMaxFew + 1] = {};  // by the samples of a strip: powers of two below `lanes`
  Scatter fewgrad[kMaxFew + 1] = {};
  Scatter scatter[kMaxTile + 1] = {};  // by tile
  BsrSpmm bsr_spmm[kMaxPanel + 1][kMaxTile + 1] = {};  // by rows and tile
  BsrBackward bsr_backward[kMaxPanel + 1][kMaxTile + 1] = {};
  BsrBackward bsr_sddmm[kMaxPanel + 1][kMaxTile + 1] = {};
};

template <class T>
struct Kernels {
  int64_t lanes = 0;      // values in a register
  int64_t spmm_tile = 0;  // widest tile of each kernel
  int64_t backward_tile = 0;
  int64_t scatter_tile = 0;
  int64_t bsr_tile[kMaxPanel + 1] = {};  // widest tile of bsr_spmm with so many rows
  IndexedKernels<T, uint16_t> u16;
  IndexedKernels<T, int32_t> i32;
  void (*bsr_outer)(const BsrOuterArgs<T>&);
  void (*bsr_gemv)(const BsrGemvArgs<T>&);
  // dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < m, j < n, and zero for m <= i < m_padded.
  void (*transpose)(const T* src, int64_t src_pitch, int64_t m, int64_t n, T* dst, int64_t dst_pitch, int64_t m_padded);
  // `count` runs of `live` values, src_pitch and dst_pitch apart; each run written ends in zeros up to `wide` values.
  void (*copy_runs)(const T* src, int64_t src_pitch, int64_t count, int64_t live, T* dst, int64_t dst_pitch,
                    int64_t wide);
  // Rows moved sideways: dst[lead + i] = src[i * step] for i < count, zero for the others of `wide`; rows are src_pitch
  // and dst_pitch apart.
  void (*shift_rows)(const T* src, int64_t src_pitch, int64_t rows, int64_t lead, int64_t count, int64_t step, T* dst,
                     int64_t dst_pitch, int64_t wide);
  T (*sum)(const T* src, int64_t n);
  void (*gate)(const T* activated, int64_t n, T* values);  // values[i] = 0 where activated[i] <= 0
  // transpose and copy_runs of the gradient of an output: zero where `activated`, laid out as grad, is <= 0 (null: as
  // it is), and added to the `lanes` partial sums at `sums`; or only that, of n values. ahead: how many elements
  // further on memory is asked for what comes next.
  void (*transpose_gradient)(const T* grad, const T* activated, int64_t src_pitch, int64_t m, int64_t n, T* dst,
                             int64_t dst_pitch, int64_t m_padded, T* sums);
  void (*copy_gradient)(const T* grad, const T* activated, int64_t src_pitch, int64_t count, int64_t live, T* dst,
                        int64_t dst_pitch, int64_t wide, T* sums, int64_t ahead);
  void (*sum_gradient)(const T* grad, const T* activated, int64_t n, T* sums);
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

// Floats from bfloat16 and back, and the kernels for a weight that is kept in it.
struct Bf16Kernels {
  template <class Index>
  using Few = void (*)(const FewArgs<float, Index, Bf16>&);
  Few<uint16_t> few_u16[kMaxFew + 1] = {};
  Few<int32_t> few_i32[kMaxFew + 1] = {};
  void (*bsr_gemv)(const BsrGemvArgs<float, Bf16>&);
  // Strips of bfloat16, for processors that multiply it; by tile, of 32 lanes each, and null elsewhere.
  template <class Index>
  using Dot = void (*)(const DotArgs<Index>&);
  Dot<uint16_t> dot_u16[kMaxTile + 1] = {};
  Dot<int32_t> dot_i32[kMaxTile + 1] = {};
  void (*bsr_dot[kMaxTile + 1])(const BsrDotArgs&) = {};
  int64_t dot_tile = 0;  // the widest there is
  // As those of Kernels, from one type to the other.
  void (*widen_transpose)(const Bf16* src, int64_t src_pitch, int64_t m, int64_t n, float* dst, int64_t dst_pitch,
                          int64_t m_padded);
  void (*narrow_transpose)(const float* src, int64_t src_pitch, int64_t m, int64_t n, Bf16* dst, int64_t dst_pitch,
                           int64_t m_padded);
  void (*widen_runs)(const Bf16* src, int64_t src_pitch, int64_t count, int64_t live, float* dst, int64_t dst_pitch,
                     int64_t wide);
  void (*narrow_runs)(const float* src, int64_t src_pitch, int64_t count, int64_t live, Bf16* dst, int64_t dst_pitch,
                      int64_t wide);
  void (*transpose)(const Bf16* src, int64_t src_pitch, int64_t m, int64_t n, Bf16* dst, int64_t dst_pitch,
                    int64_t m_padded);
  void (*copy_runs)(const Bf16* src, int64_t src_pitch, int64_t count, int64_t live, Bf16* dst, int64_t dst_pitch,
                    int64_t wide);
  std::vector<std::string> names;
};

struct KernelTable {
  Kernels<float> f32;
  Kernels<double> f64;
  Bf16Kernels bf16;
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
namespace neon {
const KernelTable* table();
}

const KernelTable& table_of(Isa isa);  // throws std::invalid_argument when this build has no kernels for isa

template <class T>
const Kernels<T>& kernels();  // those of the instruction set in use
template <>
const Kernels<float>& kernels<float>();
template <>
const Kernels<double>& kernels<double>();
const Bf16Kernels& bf16_kernels();

std::vector<std::string> microkernels();  // the names of all of them, runnable here or not

}  // namespace lth
