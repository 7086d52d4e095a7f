// Between compact values and a dense tensor: what a pruned layer costs when torch's dense product computes it.
//
// expand:   dense[i] = the next value where bit i is set, else zero      compress:   the reverse
// One bit says where each weight is (bit i % 8 of byte i / 8; bits past the end are zero), and rank[j] counts the set
// bits before weight j * kExpandChunk, so that threads may start anywhere. Values are copied, never computed with: only
// their width in bytes matters.
#pragma once

#include <cstdint>

namespace lth {

constexpr int64_t kExpandChunk = 4096;  // weights between two entries of rank; formats/dense.py has the same number

// Writes all `numel` elements of `dense`.
void expand(const void* values, const uint8_t* bits, const int32_t* rank, void* dense, int64_t numel, int width,
            int threads);

// Writes all values, rank's last entry of them.
void compress(const void* dense, const uint8_t* bits, const int32_t* rank, void* values, int64_t numel, int width,
              int threads);

}  // namespace lth
