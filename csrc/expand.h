// Between compact values and a dense tensor: what a pruned layer costs when torch's dense product computes it.
//
// expand:   dense[flat[k]] = values[k], zero elsewhere      compress:   values[k] = dense[flat[k]]
// `flat` ascends strictly, so each thread owns a contiguous piece of both sides. Values are copied, never computed with:
// only their width matters, in bytes.
#pragma once

#include <cstdint>

namespace lth {

// Writes all `numel` elements of `dense`.
void expand(const void* values, const int32_t* flat, void* dense, int64_t nnz, int64_t numel, int width, int threads);

// Writes all `nnz` elements of `values`.
void compress(const void* dense, const int32_t* flat, void* values, int64_t nnz, int width, int threads);

}  // namespace lth
