// A team of threads, and fair shares of its work. OpenMP's threads, where there is OpenMP, since torch uses the same;
// otherwise those of team.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(_OPENMP) && !defined(LTH_SPARSE_STD_THREADS)
#define LTH_OPENMP 1
#include <omp.h>
#else
#include <type_traits>

#include "team.h"
#endif

namespace lth {

// Calls body(thread, threads) on each thread of a team; the team may turn out smaller than asked for.
template <class Body>
void parallel(int threads, Body&& body) {
  if (threads <= 1) {
    body(0, 1);
    return;
  }
#if defined(LTH_OPENMP)
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
#else
  using Plain = std::remove_reference_t<Body>;
  run_team(
      threads, [](void* context, int thread, int team) { (*static_cast<Plain*>(context))(thread, team); }, &body);
#endif
}

// All threads of the innermost team wait for each other. `threads` is the team's size: a team of one has nobody to wait
// for.
inline void barrier(int threads) {
  if (threads > 1) {
#if defined(LTH_OPENMP)
#pragma omp barrier
#else
    team_barrier();
#endif
  }
}

struct Range {
  int64_t begin, end;
};

// The part-th of `parts` nearly equal pieces of [0, total).
inline Range share(int64_t total, int part, int parts) { return {total * part / parts, total * (part + 1) / parts}; }

// Where to cut rows of unequal length: the first row in [0, rows] at which pointers[row] + row * row_cost reaches
// `weight`, rounded down to a multiple of `align` unless it is the end.
inline int64_t row_at(const int32_t* pointers, int64_t rows, int64_t row_cost, int64_t weight, int64_t align = 1) {
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (pointers[middle] - pointers[0] + middle * row_cost < weight)
      low = middle + 1;
    else
      high = middle;
  }
  return low == rows ? rows : low / align * align;
}

// Multiply-adds of work that are worth waking a thread for, which costs microseconds. Settable, for tests and
// measurements.
inline std::atomic<int64_t>& thread_grain() {
  static std::atomic<int64_t> grain{1 << 17};
  return grain;
}

// At most `threads`, and no more than there are grains of work.
inline int useful_threads(int threads, double multiply_adds) {
  return static_cast<int>(
      std::max(1.0, std::min<double>(threads, multiply_adds / static_cast<double>(thread_grain()))));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace lth
