// The part of table-inl.h that uses the standard library, kept outside every target region: a std:: function compiled
// inside one could be the copy the linker keeps for the whole program, and would then fault on processors without that
// instruction set.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace lth {

// "f32_csr_spmm_8x16_u16__avx512", "f32_bsr_spmm_4x6x16_u16__avx512" where the kernel takes `rows` rows at a time, and
// their int32 siblings, unless the kernel does not exist for this instruction set.
void add_names(std::vector<std::string>& names, const char* op, int rows, int tile, bool exists, int lanes, int bytes,
               const char* isa);

// Lives as long as the process: its destructor would be one of those inline functions.
const KernelTable* make_table(void (*fill_f32)(Kernels<float>&), void (*fill_f64)(Kernels<double>&),
                              void (*fill_bf16)(Bf16Kernels&));

}  // namespace lth
