// bfloat16 as memory holds it: the upper half of a float. Nothing is computed in it: it becomes a float when it is read
// and is rounded, to the nearest and ties to even, when it is written.
#pragma once

#include <cstdint>
#include <cstring>

namespace lth {

struct Bf16 {
  uint16_t bits;

  Bf16() = default;
  explicit Bf16(float value) {
    uint32_t all;
    std::memcpy(&all, &value, sizeof all);
    const bool nan = (all & 0x7fffffffu) > 0x7f800000u;  // rounding could carry its mantissa into an infinity
    bits = static_cast<uint16_t>(nan ? (all >> 16) | 0x40u : (all + 0x7fffu + ((all >> 16) & 1u)) >> 16);
  }
  operator float() const {
    const uint32_t all = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &all, sizeof value);
    return value;
  }
};

// The type in which drivers compute with what memory holds as S.
template <class S>
struct ComputeType {
  using type = S;
};
template <>
struct ComputeType<Bf16> {
  using type = float;
};
template <class S>
using Compute = typename ComputeType<S>::type;

}  // namespace lth
