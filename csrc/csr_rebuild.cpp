#include "csr_rebuild.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace lth {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& what, int64_t got, int64_t at) {
  throw std::invalid_argument(std::string(name) + ": expected " + what + ", got " + std::to_string(got) + " at " +
                              std::to_string(at));
}

// What must hold before anything is written: afterwards every output has the room that the caller gave it.
template <class Index>
void check(const CsrChange<Index>& change) {
  const int64_t most = std::numeric_limits<int32_t>::max();
  if (change.cols > 0 && change.rows > most / change.cols) {
    throw std::invalid_argument("rows: expected rows * cols below 2^31, got " + std::to_string(change.rows) + " * " +
                                std::to_string(change.cols));
  }
  if (sizeof(Index) == 2 && std::max(change.rows, change.cols) > 1 << 16) {
    throw std::invalid_argument("index_bits: expected 32 for more than 65536 rows or columns, got 16");
  }
  if (change.crow[0] != 0) refuse("crow", "0 first", change.crow[0], 0);
  for (int64_t r = 0; r < change.rows; ++r) {
    if (change.crow[r + 1] < change.crow[r]) refuse("crow", "ascending entries", change.crow[r + 1], r + 1);
  }
  if (change.crow[change.rows] != change.nnz) refuse("crow", "nnz last", change.crow[change.rows], change.rows);
  int64_t kept = 0;
  for (int64_t k = 0; k < change.nnz; ++k) kept += change.keep[k] != 0;
  if (kept != change.kept) {
    throw std::invalid_argument("kept: expected " + std::to_string(kept) + ", the number of flags set in keep, got " +
                                std::to_string(change.kept));
  }
  int64_t before = -1;
  for (int64_t i = 0; i < change.grown_count; ++i) {
    const int64_t position = change.grown[i];
    if (position <= before || position >= change.rows * change.cols) {
      refuse("grown", "ascending positions below rows * cols", position, i);
    }
    before = position;
  }
}

}  // namespace

template <class Index>
void csr_rebuild(const CsrChange<Index>& change, const CsrRebuilt<Index>& out) {
  check(change);
  std::fill(out.ccol, out.ccol + change.cols + 1, 0);
  int64_t entry = 0, next = 0;
  const auto add = [&](int64_t c, int64_t source) {
    out.col[entry] = static_cast<Index>(c);
    out.source[entry++] = static_cast<int32_t>(source);
    ++out.ccol[c + 1];
  };
  out.crow[0] = 0;
  for (int64_t r = 0; r < change.rows; ++r) {
    const int64_t first = r * change.cols, past = first + change.cols;
    int64_t before = -1;
    for (int64_t k = change.crow[r]; k < change.crow[r + 1]; ++k) {
      const int64_t c = static_cast<int64_t>(change.col[k]);
      if (c <= before || c >= change.cols) refuse("col", "ascending columns below cols", c, k);
      before = c;
      if (!change.keep[k]) continue;
      for (; next < change.grown_count && change.grown[next] < first + c; ++next) add(change.grown[next] - first, -1);
      if (next < change.grown_count && change.grown[next] == first + c) {
        refuse("grown", "positions of no entry that is kept", first + c, next);
      }
      add(c, k);
    }
    for (; next < change.grown_count && change.grown[next] < past; ++next) add(change.grown[next] - first, -1);
    out.crow[r + 1] = static_cast<int32_t>(entry);
  }
  for (int64_t c = 0; c < change.cols; ++c) out.ccol[c + 1] += out.ccol[c];
  // ccol[c] counts up from the begin of column c to its end, which is the begin of the next one: then all move up.
  for (int64_t r = 0; r < change.rows; ++r) {
    for (int64_t k = out.crow[r]; k < out.crow[r + 1]; ++k) {
      const int32_t place = out.ccol[out.col[k]]++;
      out.row[place] = static_cast<Index>(r);
      out.perm[place] = static_cast<int32_t>(k);
    }
  }
  for (int64_t c = change.cols; c > 0; --c) out.ccol[c] = out.ccol[c - 1];
  out.ccol[0] = 0;
}

template void csr_rebuild(const CsrChange<uint16_t>&, const CsrRebuilt<uint16_t>&);
template void csr_rebuild(const CsrChange<int32_t>&, const CsrRebuilt<int32_t>&);

}  // namespace lth
