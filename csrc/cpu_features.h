// Which instruction set the kernels use: detected once, narrowed by the environment variable LTH_SPARSE_ISA or by
// set_isa().
//
// Every instruction set is compiled into one binary (kernels-*.cpp); what runs is decided here and nowhere else. A
// wrong LTH_SPARSE_ISA does not break the import: the error comes from the first call that needs kernels, and names the
// choices.
#pragma once

#include <string>
#include <vector>

namespace lth {

enum class Isa { scalar, avx2, avx512, neon };

std::string name_of(Isa isa);
std::vector<Isa> built_isas();     // in this binary, slowest first
std::vector<Isa> runnable_isas();  // of those, the ones this processor has
Isa current_isa();  // std::runtime_error when LTH_SPARSE_ISA asked for one that is unknown or not runnable
bool multiplies_bf16();  // whether the processor has AVX512_BF16
void set_isa(const std::string& name);  // std::invalid_argument likewise; overrides the environment

}  // namespace lth
