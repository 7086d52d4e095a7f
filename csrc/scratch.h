// Scratch memory for one call: a 64-byte aligned block leased from a small cache, so that the steady state of a
// training loop meets neither malloc nor page faults.
//
// A Plan adds up the pieces a call needs; a Scratch leases one block for them all and gives it back at the end of its
// scope. Calls from several Python threads each lease a block of their own; the cache is a few atomic slots, without a
// lock that a fork could leave closed. A block that stays far too large for what is asked of it is freed; trim() frees
// all.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <vector>
#define LTH_SCRATCH_FENCES 1  // one block is one piece of memory to AddressSanitizer: tell it where the pieces end
#endif

namespace lth {

class Plan {
 public:
  // Reserves count elements of T for each of `copies` (threads, mostly); returns the offset of the first in bytes.
  template <class T>
  size_t add(int64_t count, int64_t copies = 1) {
    const size_t offset = bytes_;
#if defined(LTH_SCRATCH_FENCES)
    const size_t apart = static_cast<size_t>(stride<T>(count)) * sizeof(T);
    for (size_t copy = 0; copy < static_cast<size_t>(copies); ++copy)
      pieces_.push_back({offset + copy * apart, static_cast<size_t>(count) * sizeof(T)});
#endif
    bytes_ += static_cast<size_t>(stride<T>(count)) * sizeof(T) * static_cast<size_t>(copies);
    return offset;
  }
  size_t bytes() const { return bytes_; }

  // Elements between two copies: whole cache lines, and an odd number of them so that copies do not collide in a cache.
  template <class T>
  static int64_t stride(int64_t count) {
#if defined(LTH_SCRATCH_FENCES)
    count += 64;
#endif
    const int64_t lines = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64;
    return (lines | 1) * 64 / static_cast<int64_t>(sizeof(T));
  }

 private:
  size_t bytes_ = 0;
#if defined(LTH_SCRATCH_FENCES)
  friend class Scratch;
  struct Piece {
    size_t offset, bytes;
  };
  std::vector<Piece> pieces_;
#endif
};

class Scratch {
 public:
  explicit Scratch(const Plan& plan);  // std::bad_alloc when memory runs out
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }
  template <class T>
  T* at(size_t offset, int64_t count, int64_t copy) const {
    return at<T>(offset) + copy * Plan::stride<T>(count);
  }

 private:
  struct Block* block_;
  char* data_;
};

int64_t trim();  // frees what is cached and not in use; returns the number of bytes

}  // namespace lth
