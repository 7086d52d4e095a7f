// The index of a CSR matrix after a change of its mask: some entries go, others come, and the index is not sorted anew.
//
// Old rows and new positions are both ascending, so that one merge makes the rows, and a counting sort over them the
// transposed index: O(nnz + rows + cols) in all.
#pragma once

#include <cstdint>

namespace lth {

// What the change starts from.
template <class Index>
struct CsrChange {
  int64_t rows, cols;
  int64_t nnz;           // entries before
  const int32_t* crow;   // [rows + 1]
  const Index* col;      // [nnz], ascending within a row
  const uint8_t* keep;   // [nnz], 0 for an entry that goes
  int64_t kept;          // how many stay
  const int64_t* grown;  // [grown_count] positions row * cols + col that come, ascending; none of them is kept
  int64_t grown_count;
};

// The matrix after it, with kept + grown_count entries, and where each was before.
template <class Index>
struct CsrRebuilt {
  int32_t* crow;    // [rows + 1]
  Index* col;       // [entries]
  int32_t* ccol;    // [cols + 1]
  Index* row;       // [entries]
  int32_t* perm;    // [entries]
  int32_t* source;  // [entries]: entry before the change, -1 for one that has come
};

// Throws std::invalid_argument, naming the array, when one is not as described; outputs may be half written then.
template <class Index>
void csr_rebuild(const CsrChange<Index>& change, const CsrRebuilt<Index>& out);

}  // namespace lth
