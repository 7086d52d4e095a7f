// The gradient of a convolution's output, packed as conv_transposed.h wants it, and added up for the bias while it
// passes by: it is read from memory once.
#pragma once

#include "conv_bands.h"
#include "conv_transposed.h"
#include "kernels.h"

namespace lth {

// What is read and written, and its strides: those of y are grad's and those of `activated`, those of x are dx's too.
template <class T>
struct Tensors {
  const T* grad;
  const T* activated;  // grad counts where this is not <= 0; null: everywhere
  const T* input;      // null when dvalues is not wanted
  T* dx;               // null when not wanted
  ImageStrides y, x;
  bool in_place;  // strips of x and dx are used where they are
};

// The rows of dy of one block of images that a thread keeps.
template <class T>
struct PackedDy {
  const ConvSizes& s;
  const Backward& b;
  const Kernels<T>& k;
  const Tensors<T>& from;
  T* data;
  T* temporary;
  T* sums;     // a register for each output channel, to which what is packed is added; null when not wanted
  T* discard;  // a register: where what others add up goes
  int64_t first = 0, until = 0;  // rows that are packed, the first at the start of data

  // What packing leaves as it is, and kernels read: output channels over the last one, and the ends of planes.
  void clear() {
    if (b.planes && s.width % k.lanes != 0) std::fill(data, data + b.dy_size, T(0));
    if (b.planes) std::fill(data + s.out_channels * b.dy_pitch, data + b.dy_size, T(0));
    if (sums != nullptr) std::fill(sums, sums + s.out_channels * k.lanes, T(0));
    if (b.planes) return;
    for (int64_t r = 0; r < b.dy_rows; ++r)
      std::fill(data + r * b.dy_row + s.out_channels * b.dy_pitch, data + (r + 1) * b.dy_row, T(0));
  }

  // What virtual input row v, the first of a strip, meets from shift 0 on.
  const T* at(int64_t v) const { return data + (v - b.g.y.max_shift - first) * b.dy_row; }

  // Rows [begin, end) of `live` images become available. Those before `begin` are not needed any more; keep: what is
  // packed belongs to the same images. Rows before `counted` are for others to add up.
  void provide(int64_t image, int64_t live, Range rows, bool keep, int64_t counted) {
    if (keep) counted = until;
    if (!keep || b.planes) {
      first = rows.begin;
    } else if (rows.end - first > b.dy_rows) {
      std::memmove(data, data + (rows.begin - first) * b.dy_row,
                   static_cast<size_t>((until - rows.begin) * b.dy_row) * sizeof(T));
      first = rows.begin;
    }
    const int64_t begin = std::max<int64_t>(0, keep && !b.planes ? until : rows.begin);
    const int64_t end = std::max(begin, std::min(rows.end, s.out_h));
    counted = std::min(end, std::max(begin, counted));
    until = rows.end;
    const int64_t start = image * from.y.image + begin * s.out_w * from.y.pixel;
    for (int64_t o = 0; o < s.out_channels; ++o) {
      if (!b.planes && o + kAhead < s.out_channels) {
        const int64_t next = start + (o + kAhead) * from.y.channel, pixels = (end - begin) * s.out_w;
        ahead<false>(from.grad + next, from.y, live, s.n, pixels);
        if (from.activated != nullptr) ahead<false>(from.activated + next, from.y, live, s.n, pixels);
      }
      pack(o, image, live, {begin, counted}, discard);
      pack(o, image, live, {counted, end}, sums == nullptr ? discard : sums + o * k.lanes);
      if (b.planes) finish_plane(o, begin, end);
    }
  }

 private:
  void pack(int64_t o, int64_t image, int64_t live, Range rows, T* register_of_sums) {
    if (rows.begin == rows.end) return;
    const OutputGradient<T> source{k, from.grad, from.activated, register_of_sums};
    const int64_t at = image * from.y.image + o * from.y.channel + rows.begin * s.out_w * from.y.pixel;
    T* const packed = data + o * b.dy_pitch + (rows.begin - first) * b.dy_row;
    if (b.planes) {
      const int64_t run = (rows.end - rows.begin) * s.width;
      k.copy_gradient(source.grad + at, source.gate(at), 0, 1, run, packed + middle() * b.dy_column, 0, run,
                      register_of_sums, kAhead * from.y.channel);
    } else {
      pack_band(source, at, from.y, {s.out_w, live, b.t.images}, b.dy_map, rows.end - rows.begin, packed, b.dy_row,
                b.dy_pitch, temporary);
    }
  }

  // The copy of a plane for the tap that reads straight above.
  int64_t middle() const { return static_cast<int64_t>(b.columns.size()) / 2; }

  // Zeros for rows over the border, and the other copies: the whole run moved by some columns, and zeros where a row
  // then holds the end of its neighbour.
  void finish_plane(int64_t o, int64_t begin, int64_t end) {
    const int64_t width = s.width, run = (until - first) * width;
    T* const plane = data + o * b.dy_pitch + middle() * b.dy_column;
    std::fill(plane, plane + (begin - first) * width, T(0));
    std::fill(plane + (end - first) * width, plane + run, T(0));
    for (int64_t i = 0; i < static_cast<int64_t>(b.columns.size()); ++i) {
      const int64_t left = s.pad_w - b.columns[static_cast<size_t>(i)];
      if (left == 0) continue;
      T* const copy = plane + (i - middle()) * b.dy_column;
      k.copy_runs(plane + left, 0, 1, run, copy, 0, run);
      T* edge = left > 0 ? copy + width - left : copy;
      const int64_t columns = left > 0 ? left : -left;
      for (int64_t row = first; row < until; ++row, edge += width) {
        for (int64_t j = 0; j < columns; ++j) edge[j] = T(0);
      }
    }
  }
};

// dbias[o] = sum of dy over images and pixels, straight from the tensor: where not all of it is packed. sums: a
// register for each output channel.
template <class T>
void bias_gradient(const ConvSizes& s, const Kernels<T>& k, const Tensors<T>& from, T* sums, T* dbias, Range mine) {
  // The images of a feature-major channel are neighbours. Otherwise image by image, which is how they lie in memory.
  const int64_t images = from.y.feature_major() ? 1 : s.n, run = s.out_h * s.out_w * s.n / images;
  std::fill(sums + mine.begin * k.lanes, sums + mine.end * k.lanes, T(0));
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t o = mine.begin; o < mine.end; ++o) {
      const int64_t at = n * from.y.image + o * from.y.channel;
      const T* const activated = from.activated == nullptr ? nullptr : from.activated + at;
      k.sum_gradient(from.grad + at, activated, run, sums + o * k.lanes);
    }
  }
  for (int64_t o = mine.begin; o < mine.end; ++o) dbias[o] = k.sum(sums + o * k.lanes, k.lanes);
}

}  // namespace lth
