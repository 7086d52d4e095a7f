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

constexpr int64_t kAhead = 2;  // channels for which packing asks for memory before it is needed

// Asks for `pixels` pixels of `live` of n images from p on, where no hardware does.
template <bool kWrite, class T>
void ahead(const T* p, const ImageStrides& strides, int64_t live, int64_t n, int64_t pixels) {
  if (!strides.feature_major()) {
    prefetch<kWrite>(p, strides.image, live, pixels);
  } else if (live < n) {
    prefetch<kWrite>(p, strides.pixel, pixels, live);
  }
}

// What is the same for all rows that are packed: their width, and how many of `images` images exist (live).
struct BandShape {
  int64_t width, live, images;
};

// What packing reads: pixels as they are.
template <class T>
struct Pixels {
  const Kernels<T>& k;
  const T* data;

  void transpose(int64_t at, int64_t pitch, int64_t m, int64_t n, T* dst, int64_t dst_pitch, int64_t padded) const {
    k.transpose(data + at, pitch, m, n, dst, dst_pitch, padded);
  }
  void copy_runs(int64_t at, int64_t pitch, int64_t runs, int64_t n, T* dst, int64_t dst_pitch, int64_t padded) const {
    k.copy_runs(data + at, pitch, runs, n, dst, dst_pitch, padded);
  }
};

// Or the gradient of the output, as transpose_gradient and copy_gradient of the kernels read it.
template <class T>
struct OutputGradient {
  const Kernels<T>& k;
  const T* grad;
  const T* activated;
  T* sums;

  const T* gate(int64_t at) const { return activated == nullptr ? nullptr : activated + at; }
  void transpose(int64_t at, int64_t pitch, int64_t m, int64_t n, T* dst, int64_t dst_pitch, int64_t padded) const {
    k.transpose_gradient(grad + at, gate(at), pitch, m, n, dst, dst_pitch, padded, sums);
  }
  void copy_runs(int64_t at, int64_t pitch, int64_t runs, int64_t n, T* dst, int64_t dst_pitch, int64_t padded) const {
    k.copy_gradient(grad + at, gate(at), pitch, runs, n, dst, dst_pitch, padded, sums, 0);
  }
};

// packed[column * images + i] for packed columns up to row_lanes / images. `at`: the row in image 0 of `source`, image
// i is i * image_pitch further; `live` images exist, the others are zero. `width` real columns; temporary: width *
// images elements if step > 1.
template <class Source, class T>
void pack_row(const Source& source, int64_t at, int64_t image_pitch, int64_t live, int64_t images, const RowMap& map,
              T* packed, int64_t row_lanes, T* temporary) {
  T* const data = packed + map.lead * images;
  const int64_t end = (map.lead + map.count) * images;
  std::memset(packed, 0, static_cast<size_t>(map.lead * images) * sizeof(T));
  if (map.step == 1) {
    source.transpose(at + map.first, image_pitch, live, map.count, data, images, images);
  } else if (map.count > 0) {
    const int64_t span = (map.count - 1) * map.step + 1;
    source.transpose(at + map.first, image_pitch, live, span, temporary, images, images);
    for (int64_t i = 0; i < map.count; ++i) {
      std::memcpy(data + i * images, temporary + i * map.step * images, static_cast<size_t>(images) * sizeof(T));
    }
  }
  std::memset(packed + end, 0, static_cast<size_t>(row_lanes - end) * sizeof(T));
}

// The way back, for the phases of one row together: maps[f] describes packed + f * phase_pitch. Columns in no map
// become zero.
template <class T>
void unpack_row(const Kernels<T>& k, const T* packed, int64_t phase_pitch, const RowMap* maps, int64_t phases,
                int64_t live, int64_t images, T* dst, int64_t image_pitch, int64_t width, T* temporary) {
  if (phases == 1 && maps[0].step == 1) {
    const RowMap& map = maps[0];
    k.transpose(packed + map.lead * images, images, map.count, live, dst + map.first, image_pitch, map.count);
    const int64_t end = map.first + map.count;
    if (map.count == width) return;
    for (int64_t i = 0; i < live; ++i) {
      T* const row = dst + i * image_pitch;
      std::memset(row, 0, static_cast<size_t>(map.first) * sizeof(T));
      std::memset(row + end, 0, static_cast<size_t>(width - end) * sizeof(T));
    }
    return;
  }
  std::memset(temporary, 0, static_cast<size_t>(width * images) * sizeof(T));
  for (int64_t f = 0; f < phases; ++f) {
    const T* const data = packed + f * phase_pitch + maps[f].lead * images;
    for (int64_t i = 0; i < maps[f].count; ++i) {
      std::memcpy(temporary + (maps[f].first + i * maps[f].step) * images, data + i * images,
                  static_cast<size_t>(images) * sizeof(T));
    }
  }
  k.transpose(temporary, images, width, live, dst, image_pitch, width);
}

// As copy_runs of `source`; runs without gaps are one.
template <class Source, class T>
void copy(const Source& source, int64_t at, int64_t src_pitch, int64_t runs, int64_t n, T* dst, int64_t dst_pitch,
          int64_t padded) {
  if (src_pitch == n && dst_pitch == n) {
    n = padded = runs * n;
    runs = 1;
  }
  source.copy_runs(at, src_pitch, runs, n, dst, dst_pitch, padded);
}

// `rows` consecutive pixel rows of `source` from `at` on, that of image 0, to packed rows row_pitch apart: as pack_row,
// each of row_lanes elements. temporary: rows * width * images elements.
template <class Source, class T>
void pack_band(const Source& source, int64_t at, const ImageStrides& from, const BandShape& s, const RowMap& map,
               int64_t rows, T* packed, int64_t row_pitch, int64_t row_lanes, T* temporary) {
  const int64_t images = s.images, start = map.lead * images, end = (map.lead + map.count) * images;
  if (!from.feature_major() && (map.step > 1 || rows == 1 || images == 1 || s.width % source.k.lanes == 0)) {
    for (int64_t r = 0; r < rows; ++r) {
      pack_row(source, at + r * s.width, from.image, s.live, images, map, packed + r * row_pitch, row_lanes, temporary);
    }
    return;
  }
  if (!from.feature_major()) source.transpose(at, from.image, s.live, rows * s.width, temporary, images, images);
  for (int64_t r = 0; r < rows; ++r) {
    T* const p = packed + r * row_pitch;
    const int64_t first = r * s.width + map.first;
    std::memset(p, 0, static_cast<size_t>(start) * sizeof(T));
    if (from.feature_major()) {
      copy(source, at + first * from.pixel, map.step * from.pixel, map.count, s.live, p + start, images, images);
    } else {
      copy(Pixels<T>{source.k, temporary}, first * images, images, map.count, images, p + start, images, images);
    }
    std::memset(p + end, 0, static_cast<size_t>(row_lanes - end) * sizeof(T));
  }
}

// The way back, for the phases of a row together: maps[f] describes packed + f * phase_pitch. Columns in no map become
// zero.
template <class T>
void unpack_band(const Kernels<T>& k, const T* packed, int64_t row_pitch, int64_t phase_pitch,
                 const std::vector<RowMap>& maps, int64_t rows, const BandShape& s, T* dst, const ImageStrides& to,
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
      copy(Pixels<T>{k, packed}, r * row_pitch + f * phase_pitch + map.lead * images, images, map.count, live,
           row + map.first * pixel, map.step * pixel, live);
    }
  }
  if (!to.feature_major()) k.transpose(temporary, images, rows * s.width, s.live, dst, to.image, rows * s.width);
}

}  // namespace lth
