#include "permute.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace lth {
namespace {

// Single elements move: each row of features is read in its order and written one after another.
template <class T>
void permute_elements(const T* x, T* y, const int32_t* order, int64_t features, Range rows) {
  for (int64_t o = rows.begin; o < rows.end; ++o) {
    const T* from = x + o * features;
    T* to = y + o * features;
    for (int64_t i = 0; i < features; ++i) to[i] = from[order[i]];
  }
}

}  // namespace

void permute(const void* x, void* y, const int32_t* order, int64_t outer, int64_t features, int64_t inner,
             int64_t element_bytes, int threads) {
  if (element_bytes != 2 && element_bytes != 4 && element_bytes != 8) {
    throw std::invalid_argument("element_bytes: expected 2, 4 or 8, got " + std::to_string(element_bytes));
  }
  const double elements = static_cast<double>(outer) * static_cast<double>(features) * static_cast<double>(inner);
  parallel(useful_threads(threads, elements), [&](int thread, int team) {
    if (inner == 1) {
      const Range rows = share(outer, thread, team);
      if (element_bytes == 2) {
        permute_elements(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y), order, features, rows);
      } else if (element_bytes == 4) {
        permute_elements(static_cast<const uint32_t*>(x), static_cast<uint32_t*>(y), order, features, rows);
      } else {
        permute_elements(static_cast<const uint64_t*>(x), static_cast<uint64_t*>(y), order, features, rows);
      }
      return;
    }
    const Range runs = share(outer * features, thread, team);
    const int64_t bytes = inner * element_bytes;
    for (int64_t run = runs.begin; run < runs.end; ++run) {
      const int64_t o = run / features, source = o * features + order[run % features];
      std::memcpy(static_cast<char*>(y) + run * bytes, static_cast<const char*>(x) + source * bytes,
                  static_cast<size_t>(bytes));
    }
  });
}

}  // namespace lth
