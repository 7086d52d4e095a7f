// Activations with their features in another order.
#pragma once

#include <cstdint>

namespace lth {

// y[o, i, :] = x[o, order[i], :] of contiguous [outer, features, inner] elements of 2, 4 or 8 bytes; `order` is a
// permutation. x and y do not overlap. std::invalid_argument for another size of element.
void permute(const void* x, void* y, const int32_t* order, int64_t outer, int64_t features, int64_t inner,
             int64_t element_bytes, int threads);

}  // namespace lth
