// Activations of linear layers in every kind of memory, and what the checks of the drivers share.
#pragma once

#include "harness.h"
#include "strips.h"

namespace lth {
namespace test {

constexpr int kLayouts = 5;

// A [batch, features] array in one of five layouts: batch-major, that with gaps, feature-major with gaps, strided both
// ways, and feature-major without gaps, which drivers may read and write where it is.
template <class T>
struct Matrix {
  int64_t batch, features;
  Strides s;
  Array<T> data;

  Matrix(int64_t n, int64_t f, int layout)
      : batch(n),
        features(f),
        s(layout == 0   ? Strides{f, 1}
          : layout == 1 ? Strides{f + 3, 1}
          : layout == 2 ? Strides{1, n + 1}
          : layout == 3 ? Strides{2, 2 * n + 3}
                        : Strides{1, n}),
        data(n == 0 || f == 0 ? 0 : (n - 1) * s.batch + (f - 1) * s.feature + 1) {}

  T& at(int64_t n, int64_t f) const { return data[n * s.batch + f * s.feature]; }

  void copy(const std::vector<T>& from) const {
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t f = 0; f < features; ++f) at(n, f) = from[static_cast<size_t>(n * features + f)];
    }
  }

  // What is here is the truth, or max(truth, 0). Spoils the data: once only.
  void expect(const std::vector<Sum>& truth, const char* what, bool relu = false) {
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t f = 0; f < features; ++f) {
        Sum sum = truth[static_cast<size_t>(n * features + f)];
        if (relu) sum.value = std::max(sum.value, 0.0);
        expect_sum(at(n, f), sum, what, n, f);
      }
    }
    for (int64_t n = 0; n < batch; ++n) {  // what is poison now was a gap, or was never written, which failed above
      for (int64_t f = 0; f < features; ++f) std::memset(&at(n, f), 0xff, sizeof(T));
    }
    for (int64_t i = 0; i < data.size(); ++i) {
      if (!is_poison(data[i])) fail("a gap of %s was written", what);
    }
  }
};

template <class T>
void expect_sums(const Array<T>& found, const std::vector<Sum>& truth, const char* what) {
  for (int64_t i = 0; i < found.size(); ++i) expect_sum(found[i], truth[static_cast<size_t>(i)], what, i);
}

// Of a [batch, features] array: all but one sample are finite.
template <class T>
void expect_finite_rows(const Array<T>& found, int64_t features, int64_t but, const char* what) {
  for (int64_t i = 0; i < found.size(); ++i) {
    if (i / features != but && !std::isfinite(found[i]))
      fail("%s[%d, %d] is not finite", what, int(i / features), int(i % features));
  }
}

}  // namespace test
}  // namespace lth
