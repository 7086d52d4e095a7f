// The arithmetic peak of this machine, measured: what rates of kernels are compared with.
#pragma once

namespace lth {

// Floating-point operations a second (two for each multiply-add) in float32, of `threads` threads with the registers
// of the instruction set in use and no memory: the best window of about a millisecond within `seconds`.
double fma_peak(double seconds, int threads);

}  // namespace lth
