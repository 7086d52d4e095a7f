// Convolutions with a CSR weight of feature-major bfloat16, multiplied as such (bf16_dot-inl.h): lanes are images.
// (Contiguous images would have to be transposed on both sides, which costs what is gained.)
//
// Blocks of 32 images are packed to [channel][padded row][padded column][image]. A non-zero is then an offset of whole
// registers, whatever the stride, the dilation and the groups are, and two neighbouring pixels make a strip of two.
#pragma once

#include "bf16.h"
#include "csr_conv.h"

namespace lth {

// Whether x and y are feature-major, the processor multiplies bfloat16, and so many images fill its registers well.
bool takes_conv_dot(const ConvSizes& sizes);

template <class Index>
void csr_conv2d_dot(const ConvSizes& sizes, const Bf16* x, const Bf16* values, const Bf16* bias, Bf16* y,
                    const int32_t* crow, const Index* col, bool relu, int threads);

}  // namespace lth
