// The bound is memory: expand writes `numel` elements and reads `nnz` values and positions, compress the reverse.
#include "expand.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace lth {
namespace {

// Elements copied in the time that waking a thread takes.
constexpr double kCopiesPerGrain = 8.0;

template <class T>
void expand_as(const T* values, const int32_t* flat, T* dense, int64_t nnz, int64_t numel, int threads) {
  parallel(useful_threads(threads, kCopiesPerGrain * static_cast<double>(nnz)), [&](int thread, int team) {
    const Range range = share(nnz, thread, team);
    // A thread's piece of the dense tensor goes from its first position to the next thread's.
    const int64_t begin = thread == 0 ? 0 : flat[range.begin];
    const int64_t end = thread == team - 1 ? numel : flat[range.end];
    if (begin == end) return;
    std::memset(static_cast<void*>(dense + begin), 0, static_cast<size_t>(end - begin) * sizeof(T));
    for (int64_t k = range.begin; k < range.end; ++k) dense[flat[k]] = values[k];
  });
}

template <class T>
void compress_as(const T* dense, const int32_t* flat, T* values, int64_t nnz, int threads) {
  parallel(useful_threads(threads, kCopiesPerGrain * static_cast<double>(nnz)), [&](int thread, int team) {
    const Range range = share(nnz, thread, team);
    for (int64_t k = range.begin; k < range.end; ++k) values[k] = dense[flat[k]];
  });
}

// Calls body with a pointer of the unsigned type that is `width` bytes wide.
template <class Body>
void with_width(int width, Body&& body) {
  if (width == 2) return body(static_cast<uint16_t*>(nullptr));
  if (width == 4) return body(static_cast<uint32_t*>(nullptr));
  if (width == 8) return body(static_cast<uint64_t*>(nullptr));
  throw std::invalid_argument("width: expected 2, 4 or 8 bytes, got " + std::to_string(width));
}

}  // namespace

void expand(const void* values, const int32_t* flat, void* dense, int64_t nnz, int64_t numel, int width, int threads) {
  with_width(width, [&](auto* as) {
    using T = std::remove_pointer_t<decltype(as)>;
    expand_as(static_cast<const T*>(values), flat, static_cast<T*>(dense), nnz, numel, threads);
  });
}

void compress(const void* dense, const int32_t* flat, void* values, int64_t nnz, int width, int threads) {
  with_width(width, [&](auto* as) {
    using T = std::remove_pointer_t<decltype(as)>;
    compress_as(static_cast<const T*>(dense), flat, static_cast<T*>(values), nnz, threads);
  });
}

}  // namespace lth
