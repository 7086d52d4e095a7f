// Activations in strips: how a batch is cut into them, and the ways in and out for linear layers, any strides. Memory
// may hold them as bfloat16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace lth {

struct LinearSizes {
  int64_t batch, rows, cols;  // samples, output features, input features
};

struct Strides {  // of a [batch, features] array, in elements
  int64_t batch, feature;
};

// dy of a layer. Where `activated` is not null the layer ended in a ReLU that gave it, and dy counts where the ReLU
// passed it on.
template <class T>
struct Gradient {
  const T* data;
  Strides strides;
  const T* activated = nullptr;
  Strides activated_strides = {0, 0};
};

constexpr int64_t kChunk = 32;  // features packed or unpacked at a time

// Packed activations kept at once, where the batch is large: for each thread, so few that they are still in its cache
// when they are read, and for all.
constexpr int64_t kRoundBytes = 2 << 20;
constexpr int64_t kRoundThreads = 4;

// How the batch is cut: `strips` strips of `tile` registers, `lanes` samples each; the last one may be partly empty.
struct Tiling {
  int64_t tile, lanes, strips;

  Tiling(int64_t batch, int64_t vector_lanes, int64_t widest) {
    strips = ceil_div(batch, widest * vector_lanes);
    tile = ceil_div(ceil_div(batch, strips), vector_lanes);
    lanes = tile * vector_lanes;
  }

  // Strips that can be dealt out, as many to each thread, so that nobody waits for what another one packs: narrower
  // ones by half at most, and where that leaves few more registers empty. Else as it is.
  Tiling dealt(int64_t batch, int threads) const {
    const int64_t vector_lanes = lanes / tile, registers = ceil_div(batch, vector_lanes);
    const Tiling other(batch, vector_lanes, ceil_div(registers, round_up(strips, threads)));
    const bool fits = other.strips % threads == 0 && 2 * other.tile >= tile;
    return fits && 3 * other.strips * other.tile <= 4 * strips * tile ? other : *this;
  }
};

// Whether a [batch, features] array is, as it stands, the one strip of so many lanes that packing would make of it.
inline bool is_strip(int64_t batch, Strides s, int64_t lanes) {
  return batch == lanes && s.feature == lanes && (batch == 1 || s.batch == 1);
}

template <class T>
bool is_strip(int64_t batch, const Gradient<T>& g, int64_t lanes) {
  return g.activated == nullptr && is_strip(batch, g.strides, lanes);
}

// values[i] = max(values[i], 0), NaN as it is: where no kernel does so as it stores.
template <class T>
void apply_relu(T* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = values[i] < T(0) ? T(0) : values[i];
}

// Moving values between memory and strips, where both have one type and where memory has Bf16.
template <class T>
void copy_runs(const Kernels<T>& k, const T* src, int64_t src_pitch, int64_t count, int64_t live, T* dst,
               int64_t dst_pitch, int64_t wide) {
  k.copy_runs(src, src_pitch, count, live, dst, dst_pitch, wide);
}
inline void copy_runs(const Kernels<float>&, const Bf16* src, int64_t src_pitch, int64_t count, int64_t live,
                      float* dst, int64_t dst_pitch, int64_t wide) {
  bf16_kernels().widen_runs(src, src_pitch, count, live, dst, dst_pitch, wide);
}
inline void copy_runs(const Kernels<float>&, const float* src, int64_t src_pitch, int64_t count, int64_t live,
                      Bf16* dst, int64_t dst_pitch, int64_t wide) {
  bf16_kernels().narrow_runs(src, src_pitch, count, live, dst, dst_pitch, wide);
}

inline void copy_runs(const Kernels<float>&, const Bf16* src, int64_t src_pitch, int64_t count, int64_t live,
                      Bf16* dst, int64_t dst_pitch, int64_t wide) {
  bf16_kernels().copy_runs(src, src_pitch, count, live, dst, dst_pitch, wide);
}

template <class T>
void transpose(const Kernels<T>& k, const T* src, int64_t src_pitch, int64_t m, int64_t n, T* dst, int64_t dst_pitch,
               int64_t m_padded) {
  k.transpose(src, src_pitch, m, n, dst, dst_pitch, m_padded);
}
inline void transpose(const Kernels<float>&, const Bf16* src, int64_t src_pitch, int64_t m, int64_t n, float* dst,
                      int64_t dst_pitch, int64_t m_padded) {
  bf16_kernels().widen_transpose(src, src_pitch, m, n, dst, dst_pitch, m_padded);
}
inline void transpose(const Kernels<float>&, const float* src, int64_t src_pitch, int64_t m, int64_t n, Bf16* dst,
                      int64_t dst_pitch, int64_t m_padded) {
  bf16_kernels().narrow_transpose(src, src_pitch, m, n, dst, dst_pitch, m_padded);
}

inline void transpose(const Kernels<float>&, const Bf16* src, int64_t src_pitch, int64_t m, int64_t n, Bf16* dst,
                      int64_t dst_pitch, int64_t m_padded) {
  bf16_kernels().transpose(src, src_pitch, m, n, dst, dst_pitch, m_padded);
}

// Features [begin, end) of one strip, to packed[feature * lanes + lane]; lanes without a sample are zero.
template <class T, class S, class P>
void pack(const Kernels<T>& k, const S* src, Strides s, int64_t batch, const Tiling& t, int64_t strip, Range features,
          P* packed) {
  const int64_t first = strip * t.lanes;
  const int64_t samples = std::min(t.lanes, batch - first);
  const S* const from = src + first * s.batch + features.begin * s.feature;
  P* const to = packed + features.begin * t.lanes;
  const int64_t count = features.end - features.begin;
  if (s.feature == 1) {
    transpose(k, from, s.batch, samples, count, to, t.lanes, t.lanes);
    return;
  }
  if (s.batch == 1) {
    copy_runs(k, from, s.feature, count, samples, to, t.lanes, t.lanes);
    return;
  }
  for (int64_t f = 0; f < count; ++f) {
    const S* const p = from + f * s.feature;
    P* const q = to + f * t.lanes;
    for (int64_t i = 0; i < samples; ++i) q[i] = static_cast<P>(p[i * s.batch]);
    std::memset(q + samples, 0, static_cast<size_t>(t.lanes - samples) * sizeof(P));
  }
}

// The way back: `count` features from packed[feature * lanes + lane] to dst, from feature `first_feature` on.
template <class T, class S>
void unpack(const Kernels<T>& k, const T* packed, int64_t count, S* dst, Strides d, int64_t batch, const Tiling& t,
            int64_t strip, int64_t first_feature) {
  const int64_t first = strip * t.lanes;
  const int64_t samples = std::min(t.lanes, batch - first);
  S* const to = dst + first * d.batch + first_feature * d.feature;
  if (d.feature == 1) {
    transpose(k, packed, t.lanes, count, samples, to, d.batch, count);
    return;
  }
  if (d.batch == 1) {
    copy_runs(k, packed, t.lanes, count, samples, to, d.feature, samples);
    return;
  }
  for (int64_t f = 0; f < count; ++f) {
    const T* const p = packed + f * t.lanes;
    S* const q = to + f * d.feature;
    for (int64_t i = 0; i < samples; ++i) q[i * d.batch] = static_cast<S>(p[i]);
  }
}

// A thread's share of `strips` strips of `features` features, in chunks: calls pack_range(strip, features, to) for its
// parts. `padded` features where that is more: the last ones, all zero, are there for blocks that reach over the edge
// of the weight.
template <class P, class Body>
void share_strips(const Tiling& t, int64_t strips, int64_t features, P* packed, int thread, int threads, int64_t padded,
                  Body&& pack_range) {
  padded = std::max(features, padded);
  const int64_t chunks = ceil_div(features, kChunk);
  const Range mine = share(strips * chunks, thread, threads);
  for (int64_t i = mine.begin; i < mine.end;) {
    const int64_t strip = i / chunks;
    const int64_t stop = std::min(mine.end, (strip + 1) * chunks);
    const Range range{(i - strip * chunks) * kChunk, std::min(features, (stop - strip * chunks) * kChunk)};
    P* const to = packed + strip * padded * t.lanes;
    pack_range(strip, range, to);
    if (range.end == features)
      std::memset(to + features * t.lanes, 0, static_cast<size_t>((padded - features) * t.lanes) * sizeof(P));
    i = stop;
  }
}

// A thread's share of packing strips [first, first + strips).
template <class T, class S, class P>
void pack_share(const Kernels<T>& k, const S* src, Strides s, int64_t batch, const Tiling& t, int64_t first,
                int64_t strips, int64_t features, P* packed, int thread, int threads, int64_t padded = 0) {
  share_strips(t, strips, features, packed, thread, threads, padded,
               [&](int64_t strip, Range range, P* to) { pack(k, src, s, batch, t, first + strip, range, to); });
}

// Elements of `buffer` below.
template <class T>
int64_t gate_size(const Gradient<T>& g, const Tiling& t) {
  return g.activated == nullptr ? 0 : kChunk * t.lanes;
}

// The same for dy, as it was in front of the ReLU if there was one; `buffer` is this thread's alone.
template <class T>
void pack_share(const Kernels<T>& k, const Gradient<T>& g, int64_t batch, const Tiling& t, int64_t first,
                int64_t strips, int64_t features, T* packed, T* buffer, int thread, int threads, int64_t padded = 0) {
  share_strips(t, strips, features, packed, thread, threads, padded, [&](int64_t strip, Range range, T* to) {
    if (g.activated == nullptr) return pack(k, g.data, g.strides, batch, t, first + strip, range, to);
    for (int64_t f = range.begin; f < range.end; f += kChunk) {
      const Range part{f, std::min(f + kChunk, range.end)};
      const int64_t count = part.end - part.begin;
      pack(k, g.data, g.strides, batch, t, first + strip, part, to);
      const T* const activated = g.activated + f * g.activated_strides.feature;
      pack(k, activated, g.activated_strides, batch, t, first + strip, {0, count}, buffer);
      k.gate(buffer, count * t.lanes, to + f * t.lanes);
    }
  });
}

// Where there are plenty, rows are dealt out in whole chunks: no two threads then write to one cache line of the
// output.
inline int64_t cut_alignment(int64_t rows, int threads) { return rows >= 8 * kChunk * threads ? kChunk : 1; }

inline int64_t strips_per_round(const Tiling& t, int64_t features, int64_t bytes, int threads) {
  const int64_t bytes_at_once = kRoundBytes * std::min<int64_t>(threads, kRoundThreads);
  const int64_t fit = bytes_at_once / std::max<int64_t>(1, features * t.lanes * bytes);
  return std::min(t.strips, round_up(std::max<int64_t>(fit, 1), threads));
}

// Whether each thread packs a copy of its own of what all of them read again and again in no order: streaming it in once
// more costs less than fetching line after line from the caches of other cores, which may be far. Not for so few reads
// that many lines are never touched, nor for so many threads that the copies fill the memory that they share.
constexpr int kCopies = 8;
inline bool own_copies(int64_t reads, int64_t features, int threads) {
  return threads > 1 && threads <= kCopies && reads >= 2 * features * threads;
}

// Whether every thread has as many strips in each round, so that shares of packing and of work are the same strips.
inline bool is_dealt(const Tiling& t, int64_t round, int team) { return t.strips % team == 0 && round % team == 0; }

}  // namespace lth
