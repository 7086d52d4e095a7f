// What every part of the native tests uses: fenced memory, numbers, comparison by the error bound of a sum, and the
// name of the case that is running.
//
// The program knows nothing of Python, so that it can be cross-compiled and run in an emulator, and built with
// sanitizers. A part is a function in main.cpp's list; a check that fails prints its case and makes the exit status 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu_features.h"

namespace lth {
namespace test {

// Names the case from here on, on this thread; `format` as for printf. Also printed when the process dies of a signal.
__attribute__((format(printf, 1, 2))) void begin_case(const char* format, ...);
__attribute__((format(printf, 1, 2))) void fail(const char* format, ...);
int64_t cases();
int64_t failures();

// `bytes` of memory, all bits set (NaN, -1), with an inaccessible page right after its end or right before its begin,
// in turns; what lies on the other side is checked when it is given back. Masked loads and stores of AVX meet these
// fences, while AddressSanitizer does not see them. Under the sanitizers, which want to know every allocation, plain
// malloc.
struct Fenced {
  explicit Fenced(size_t bytes);
  ~Fenced();
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  void poison();

  unsigned char* data;
  size_t bytes, mapped;
  unsigned char* map;
};

template <class T>
class Array {
 public:
  explicit Array(int64_t count) : memory_(static_cast<size_t>(count) * sizeof(T)), count_(count) {}
  template <class U>
  explicit Array(const std::vector<U>& from) : Array(static_cast<int64_t>(from.size())) {
    for (int64_t i = 0; i < count_; ++i) data()[i] = static_cast<T>(from[static_cast<size_t>(i)]);
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data); }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return count_; }
  void poison() { memory_.poison(); }

 private:
  Fenced memory_;
  int64_t count_;
};

// Whether p still holds what Array was filled with.
template <class T>
bool is_poison(const T& v) {
  unsigned char ones[sizeof(T)];
  std::memset(ones, 0xff, sizeof(T));
  return std::memcmp(&v, ones, sizeof(T)) == 0;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  uint64_t bits() {  // xorshift64
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    return state_ ^= state_ << 17;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>((bits() >> 11) % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(bits() >> 11) / 4503599627370496.0 - 1.0; }  // [-1, 1)
  template <class T>
  void fill(const Array<T>& a) {
    for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<T>(uniform());
  }

 private:
  uint64_t state_;
};

// A sum as the truth has it: in double, with what bounds the rounding error of any order of adding it up.
struct Sum {
  double value = 0, magnitude = 0;
  int64_t terms = 0;
  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
    ++terms;
  }
  void relu() { value = std::max(value, 0.0); }  // rounding moves no value further than it moved the sum
};

template <class T>
void expect_sum(T found, const Sum& truth, const char* what, int64_t i, int64_t j = 0) {
  const double bound =
      static_cast<double>(std::numeric_limits<T>::epsilon()) * static_cast<double>(truth.terms + 2) * truth.magnitude;
  if (!(std::fabs(static_cast<double>(found) - truth.value) <= bound)) {
    fail("%s[%lld, %lld] is %.9g, not %.9g", what, static_cast<long long>(i), static_cast<long long>(j),
         static_cast<double>(found), truth.value);
  }
}

template <class T>
void expect_equal(T found, T right, const char* what, int64_t i, int64_t j = 0) {
  if (std::memcmp(&found, &right, sizeof(T)) != 0) {
    fail("%s[%lld, %lld] is %.9g, not %.9g", what, static_cast<long long>(i), static_cast<long long>(j),
         static_cast<double>(found), static_cast<double>(right));
  }
}

template <class T>
void expect_same(const Array<T>& found, const Array<T>& right, const char* what) {
  for (int64_t i = 0; i < right.size(); ++i) expect_equal(found[i], right[i], what, i);
}

// A sparse matrix in every form that kernels take, for a mask of rows x cols.
template <class Index>
struct Csr {
  int64_t rows, cols, nnz;
  Array<int32_t> crow, ccol, perm;
  Array<Index> col, row;

  static Csr of(const std::vector<char>& mask, int64_t rows, int64_t cols) {
    std::vector<int32_t> crow{0}, ccol{0}, perm, position(mask.size());
    std::vector<int64_t> col, row;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        if (!mask[static_cast<size_t>(r * cols + c)]) continue;
        position[static_cast<size_t>(r * cols + c)] = static_cast<int32_t>(col.size());
        col.push_back(c);
      }
      crow.push_back(static_cast<int32_t>(col.size()));
    }
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        if (!mask[static_cast<size_t>(r * cols + c)]) continue;
        row.push_back(r);
        perm.push_back(position[static_cast<size_t>(r * cols + c)]);
      }
      ccol.push_back(static_cast<int32_t>(row.size()));
    }
    const int64_t nnz = static_cast<int64_t>(col.size());
    return {rows, cols, nnz, Array<int32_t>(crow), Array<int32_t>(ccol), Array<int32_t>(perm), Array<Index>(col),
            Array<Index>(row)};
  }
};

// Each weight is kept with probability `density`, in rows that are full, empty, or as they come.
std::vector<char> random_mask(Random& random, int64_t rows, int64_t cols, double density);

// Fills scratch memory with NaN, as other calls may leave it.
void poison_scratch();

// Calls body(T(), Index()) for the value and index types that kernels exist for.
template <class Body>
void each_type(Body&& body) {
  body(float(), uint16_t());
  body(double(), int32_t());
  body(float(), int32_t());
  body(double(), uint16_t());
}

template <class T>
const char* type_name() {
  return std::is_same_v<T, float> ? "f32" : std::is_same_v<T, double> ? "f64" : sizeof(T) == 2 ? "u16" : "i32";
}

// Calls body() with each instruction set that runs here in use.
template <class Body>
void each_isa(Body&& body) {
  for (Isa isa : runnable_isas()) {
    set_isa(name_of(isa));
    body(name_of(isa).c_str());
  }
}

void microkernels_part();
void linear_part();
void bsr_linear_part();
void conv_part();
void bsr_conv_part();
void bf16_part();
void moves_part();
void permute_part();
void reorder_part();
void rebuild_part();
void concurrency_part();

}  // namespace test
}  // namespace lth
