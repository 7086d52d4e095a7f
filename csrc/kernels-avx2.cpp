// The kernels compiled for avx2, whatever flags the rest of the build uses: a target region around the shared *-inl.h.
//
// Everything from the standard library is included before the region opens and nothing in the region calls into it, so
// that no inline function shared with other files is ever compiled for this instruction set (one definition per
// program).
#include "table.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define LTH_ISA "avx2"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace lth {
namespace avx2 {
#include "simd-avx2-inl.h"
#include "memory-inl.h"
#include "csr_spmm-inl.h"
#include "csr_backward-inl.h"
#include "csr_scatter-inl.h"
#include "few-avx-inl.h"
#include "csr_few-inl.h"
#include "bsr_spmm-inl.h"
#include "bsr_backward-inl.h"
#include "bsr_outer-inl.h"
#include "bsr_gemv-inl.h"
#include "pack-inl.h"
#include "relu-inl.h"
#include "shift-inl.h"
#include "gradient-inl.h"
inline void fill_dot(Bf16Kernels&) {}  // none here
}  // namespace avx2
}  // namespace lth

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace lth {
namespace avx2 {
// Outside the region: which microkernels there are can be asked for on every processor.
#include "table-inl.h"
}  // namespace avx2
}  // namespace lth

#endif  // x86-64
