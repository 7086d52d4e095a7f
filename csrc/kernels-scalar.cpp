// The kernels for any machine: the shared *-inl.h over 16-byte vectors of the compiler, without a target region.
#include "table.h"

#define LTH_ISA "scalar"

namespace lth {
namespace scalar {
#include "simd-scalar-inl.h"
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
}  // namespace scalar
}  // namespace lth
