// permute: sizes of elements, runs of one and of many, one and more threads, against the definition.
#include "permute.h"

#include <stdexcept>

#include "harness.h"
#include "parallel.h"

namespace lth {
namespace test {
namespace {

template <class T>
void check(int64_t outer, int64_t features, int64_t inner, int threads) {
  begin_case("permute of %d bytes [%d, %d, %d], %d threads", int(sizeof(T)), int(outer), int(features), int(inner),
             threads);
  const Array<T> x(outer * features * inner), y(outer * features * inner);
  const Array<int32_t> order(features);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(i);
  for (int64_t i = 0; i < features; ++i) order[i] = static_cast<int32_t>(features - 1 - i);
  for (int64_t i = 2; i < features; i += 3) std::swap(order[i], order[i / 2]);
  permute(x.data(), y.data(), order.data(), outer, features, inner, sizeof(T), threads);
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < features; ++i) {
      for (int64_t k = 0; k < inner; ++k) {
        if (y[(o * features + i) * inner + k] != x[(o * features + order[i]) * inner + k]) {
          fail("wrong at %d %d %d", int(o), int(i), int(k));
          return;
        }
      }
    }
  }
}

}  // namespace

void permute_part() {
  const int64_t before = thread_grain().exchange(1);
  for (int threads : {1, 3}) {
    for (int64_t outer : {0, 1, 5}) {
      for (int64_t features : {1, 2, 7, 33}) {
        for (int64_t inner : {1, 2, 9}) {
          check<uint16_t>(outer, features, inner, threads);
          check<uint32_t>(outer, features, inner, threads);
          check<uint64_t>(outer, features, inner, threads);
        }
      }
    }
  }
  thread_grain() = before;
  begin_case("permute refuses elements of a byte");
  try {
    permute(nullptr, nullptr, nullptr, 0, 0, 0, 1, 1);
    fail("no exception");
  } catch (const std::invalid_argument&) {
  }
}

}  // namespace test
}  // namespace lth
