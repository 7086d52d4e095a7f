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
};

// Whether a [batch, features] array is, as it stands, the one strip of so many lanes that packing would make of it.
inline bool is_strip(int64_t batch, Strides s, int64_t lanes) {
  return batch == lanes && s.feature == lanes && (batch == 1 || s.batch == 1);
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

// A thread's share of packing `strips` strips of `features` features from strip `first` on, in chunks. `padded`
// features where that is more: the last ones, all zero, are there for blocks that reach over the edge of the weight.
template <class T, class S, class P>
void pack_share(const Kernels<T>& k, const S* src, Strides s, int64_t batch, const Tiling& t, int64_t first,
                int64_t strips, int64_t features, P* packed, int thread, int threads, int64_t padded = 0) {
  padded = std::max(features, padded);
  const int64_t chunks = ceil_div(features, kChunk);
  const Range mine = share(strips * chunks, thread, threads);
  for (int64_t i = mine.begin; i < mine.end;) {
    const int64_t strip = i / chunks;
    const int64_t stop = std::min(mine.end, (strip + 1) * chunks);
    const Range range{(i - strip * chunks) * kChunk, std::min(features, (stop - strip * chunks) * kChunk)};
    P* const to = packed + strip * padded * t.lanes;
    pack(k, src, s, batch, t, first + strip, range, to);
    if (range.end == features)
      std::memset(to + features * t.lanes, 0, static_cast<size_t>((padded - features) * t.lanes) * sizeof(P));
    i = stop;
  }
}

// Where there are plenty, rows are dealt out in whole chunks: no two threads then write to one cache line of the
// output.
inline int64_t cut_alignment(int64_t rows, int threads) { return rows >= 8 * kChunk * threads ? kChunk : 1; }

inline int64_t strips_per_round(const Tiling& t, int64_t features, int64_t bytes, int threads) {
  const int64_t bytes_at_once = kRoundBytes * std::min<int64_t>(threads, kRoundThreads);
  const int64_t fit = bytes_at_once / std::max<int64_t>(1, features * t.lanes * bytes);
  return std::min(t.strips, round_up(std::max<int64_t>(fit, 1), threads));
}

}  // namespace lth
