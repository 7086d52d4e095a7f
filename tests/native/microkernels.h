// What the checks of single microkernels share: rows of non-zeros, and the strips they point to.
#pragma once

#include <algorithm>

#include "harness.h"
#include "kernels.h"

namespace lth {
namespace test {

// Rows of a sparse matrix by their pointers, with gaps between them as blocks of a reduction have them.
struct Rows {
  Array<int32_t> begin, end;
  int64_t rows, nnz;

  static Rows of(Random& random, int64_t rows) {
    std::vector<int32_t> begin, end;
    int32_t at = static_cast<int32_t>(random.below(3));
    for (int64_t r = 0; r < rows; ++r) {
      begin.push_back(at);
      at += static_cast<int32_t>(r % 4 == 2 ? 0 : random.below(r % 8 == 5 ? 30 : 14));
      end.push_back(at);
      if (r + 1 < rows) at += static_cast<int32_t>(random.below(2));
    }
    return {Array<int32_t>(begin), Array<int32_t>(end), rows, at};
  }
};

template <class Index>
int64_t fill_offsets(Random& random, const Array<Index>& offset, int64_t below) {
  int64_t largest = 0;
  for (int64_t k = 0; k < offset.size(); ++k) {
    offset[k] = static_cast<Index>(random.below(below));
    largest = std::max<int64_t>(largest, offset[k]);
  }
  return largest;
}

struct Shape {
  int64_t unit, pitch;
};

// Units and pitches for strips of `width` elements: touching, with gaps, and single elements.
inline std::vector<Shape> shapes(int64_t width) { return {{width, width}, {1, width + 3}, {width + 5, 2 * width}}; }

// The kernels for blocks in one table; the others are in microkernels.cpp.
template <class T>
void check_block_kernels(const Kernels<T>& k, const char* isa);

}  // namespace test
}  // namespace lth
