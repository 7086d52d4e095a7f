// The kernels compiled for avx512, whatever flags the rest of the build uses: a target region around the shared
// *-inl.h.
//
// Everything from the standard library is included before the region opens and nothing in the region calls into it, so
// that no inline function shared with other files is ever compiled for this instruction set (one definition per
// program).
#include "table.h"

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // GCC 12 takes the deliberately undefined operands inside its own intrinsics for mistakes
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#define LTH_ISA "avx512"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

namespace lth {
namespace avx512 {
#include "simd-avx512-inl.h"
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
}  // namespace avx512
}  // namespace lth

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// What only some of these processors have, in a region of its own.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

namespace lth {
namespace avx512 {
#include "bf16_dot-inl.h"
}  // namespace avx512
}  // namespace lth

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace lth {
namespace avx512 {

void fill_dot(Bf16Kernels& k) {
  if (!multiplies_bf16()) return;
  add_dot<1>(k);
  add_dot<2>(k);
}

// Outside the regions: which microkernels there are can be asked for on every processor.
#include "table-inl.h"

}  // namespace avx512
}  // namespace lth

#endif  // x86-64
