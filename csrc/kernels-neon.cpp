// The kernels for NEON. Every AArch64 processor has it, so that no target region is needed: unlike the scalar kernels,
// these use fused multiply-adds, pairwise sums, and all 32 registers in the backward tiles.
#include "table.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define LTH_ISA "neon"

// GCC's scheduler runs before registers are given out on this architecture and hoists the loads of four non-zeros at
// once: the backward tiles above four would spill. Without it none does.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

namespace lth {
namespace neon {
#include "simd-neon-inl.h"
#include "memory-inl.h"
#include "csr_spmm-inl.h"
#include "csr_backward-inl.h"
#include "csr_scatter-inl.h"
#include "few-scalar-inl.h"
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
#include "table-inl.h"
}  // namespace neon
}  // namespace lth

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

#endif  // AArch64
