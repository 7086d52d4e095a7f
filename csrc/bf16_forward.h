// Forward passes with bfloat16 values, bias, x and y; see the headers of the general ones for the arguments. There are
// no backward passes in it.
#pragma once

#include "bf16.h"
#include "bsr_conv.h"
#include "bsr_linear.h"
#include "csr_conv.h"
#include "csr_linear.h"

namespace lth {

template <>
void csr_linear_forward<Bf16, uint16_t>(const LinearSizes&, const Bf16* x, Strides, const Bf16* values,
                                        const Bf16* bias, Bf16* y, Strides, const int32_t* crow, const uint16_t* col,
                                        bool relu, int threads);
template <>
void csr_linear_forward<Bf16, int32_t>(const LinearSizes&, const Bf16* x, Strides, const Bf16* values,
                                       const Bf16* bias, Bf16* y, Strides, const int32_t* crow, const int32_t* col,
                                       bool relu, int threads);
template <>
void bsr_linear_forward<Bf16>(const LinearSizes&, const Bf16* x, Strides, const BsrWeight<Bf16>&, const Bf16* bias,
                              Bf16* y, Strides, bool relu, int threads);
template <>
void csr_conv2d_forward<Bf16, uint16_t>(const ConvSizes&, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y,
                                        const int32_t* crow, const uint16_t* col, bool relu, int threads);
template <>
void csr_conv2d_forward<Bf16, int32_t>(const ConvSizes&, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y,
                                       const int32_t* crow, const int32_t* col, bool relu, int threads);
template <>
void bsr_conv2d_forward<Bf16>(const ConvSizes&, const Bf16* x, const BsrWeight<Bf16>&, const Bf16* bias, Bf16* y,
                              bool relu, int threads);

}  // namespace lth
