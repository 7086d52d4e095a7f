// Pixel rows of one channel between tensors, contiguous or feature-major, and packed rows: several rows at a time.
//
// A feature-major tensor has the images innermost already, so that packing copies runs of them. Of a contiguous one
// with narrow rows, consecutive rows are transposed together: a row by itself would not fill a cache line or a vector.
#pragma once

#include <algorithm>

#include "conv_rows.h"

namespace lth {

struct ImageStrides {  // of an array [n, channels, pixels], in elements
  int64_t image, channel, pixel;

  ImageStrides(int64_t n, int64_t channels, int64_t pixels, bool feature_major)
      : image(feature_major ? 1 : channels * pixels),
        channel(feature_major ? pixels * n : pixels),
        pixel(feature_major ? n : 1) {}

  bool feature_major() const { return image == 1 && pixel > 1; }
};

// What is the same for all rows that are packed: their width, and how many of `images` images exist (live).
struct Images {
  int64_t width, live, images;
};

// Runs of `live` elements, from_pitch and to_pitch apart, the rest of each destination up to `images` filled with zeros.
template <class T>
void copy_runs(const T* from, int64_t from_pitch, T* to, int64_t to_pitch, int64_t count, int64_t live,
               int64_t images) {
  if (live == from_pitch && live == to_pitch) {
    std::memcpy(to, from, static_cast<size_t>(count * live) * sizeof(T));
    return;
  }
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; ++i, from += from_pitch, to += to_pitch) {
    if (live % kLine == 0) {
      for (int64_t j = 0; j < live; j += kLine) std::memcpy(to + j, from + j, 64);
    } else {
      for (int64_t j = 0; j < live; ++j) to[j] = from[j];
    }
    for (int64_t j = live; j < images; ++j) to[j] = 0;
  }
}

// `rows` consecutive pixel rows from src on, that of image 0, to packed rows row_pitch apart: as pack_row, each of
// row_lanes elements. temporary: rows * width * images elements.
template <class T>
void pack_rows(const Kernels<T>& k, const T* src, const ImageStrides& from, const Images& s, const RowMap& map,
               int64_t rows, T* packed, int64_t row_pitch, int64_t row_lanes, T* temporary) {
  const int64_t images = s.images, start = map.lead * images, end = (map.lead + map.count) * images;
  if (!from.feature_major() && (map.step > 1 || rows == 1 || images == 1 || s.width % k.lanes == 0)) {
    for (int64_t r = 0; r < rows; ++r) {
      pack_row(k, src + r * s.width, from.image, s.live, images, map, packed + r * row_pitch, row_lanes, temporary);
    }
    return;
  }
  int64_t pixel = from.pixel;
  int64_t live = s.live;
  if (!from.feature_major()) {
    k.transpose(src, from.image, live, rows * s.width, temporary, images, images);
    src = temporary;
    pixel = live = images;
  }
  for (int64_t r = 0; r < rows; ++r) {
    T* const p = packed + r * row_pitch;
    std::memset(p, 0, static_cast<size_t>(start) * sizeof(T));
    copy_runs(src + (r * s.width + map.first) * pixel, map.step * pixel, p + start, images, map.count, live, images);
    std::memset(p + end, 0, static_cast<size_t>(row_lanes - end) * sizeof(T));
  }
}

// The way back, for the phases of a row together: maps[f] describes packed + f * phase_pitch. Columns in no map become
// zero.
template <class T>
void unpack_rows(const Kernels<T>& k, const T* packed, int64_t row_pitch, int64_t phase_pitch,
                 const std::vector<RowMap>& maps, int64_t rows, const Images& s, T* dst, const ImageStrides& to,
                 T* temporary) {
  const int64_t images = s.images, phases = static_cast<int64_t>(maps.size());
  if (!to.feature_major() && (maps[0].step > 1 || rows == 1 || images == 1 || s.width % k.lanes == 0)) {
    for (int64_t r = 0; r < rows; ++r) {
      unpack_row(k, packed + r * row_pitch, phase_pitch, maps.data(), phases, s.live, images, dst + r * s.width,
                 to.image, s.width, temporary);
    }
    return;
  }
  T* const out = to.feature_major() ? dst : temporary;
  const int64_t pixel = to.feature_major() ? to.pixel : images, live = to.feature_major() ? s.live : images;
  const bool gaps = phases > 1 || maps[0].count < s.width;
  for (int64_t r = 0; r < rows; ++r) {
    T* const row = out + r * s.width * pixel;
    if (gaps) {
      for (int64_t i = 0; i < s.width; ++i) std::memset(row + i * pixel, 0, static_cast<size_t>(live) * sizeof(T));
    }
    for (int64_t f = 0; f < phases; ++f) {
      const RowMap& map = maps[static_cast<size_t>(f)];
      copy_runs(packed + r * row_pitch + f * phase_pitch + map.lead * images, images, row + map.first * pixel,
                map.step * pixel, map.count, live, live);
    }
  }
  if (!to.feature_major()) k.transpose(temporary, images, rows * s.width, s.live, dst, to.image, rows * s.width);
}

}  // namespace lth
