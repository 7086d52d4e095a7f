// What the files module*.cpp share, the only ones that know Python: integers become pointers and types, and what would
// make a call meaningless is refused.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lth {
namespace binding {

using Pointer = std::uintptr_t;

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}

template <class T>
struct Type {
  using type = T;
};

inline void check_index_bits(int index_bits) {
  if (index_bits != 16 && index_bits != 32) {
    throw std::invalid_argument("index_bits: expected 16 or 32, got " + std::to_string(index_bits));
  }
}

inline void at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) {
    throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(least) + ", got " +
                                std::to_string(value));
  }
}

inline void not_null(const char* name, Pointer p, bool needed) {
  if (needed && p == 0) throw std::invalid_argument(std::string(name) + ": expected a pointer, got 0");
}

// module_rebuild.cpp: masks that change.
void bind_rebuild(pybind11::module_& m);

// module_reorder.cpp: orders of rows and columns.
void bind_reorder(pybind11::module_& m);

}  // namespace binding
}  // namespace lth
