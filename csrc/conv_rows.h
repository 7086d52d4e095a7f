// One pixel row of `images` images to [column][image] and back: the step between NCHW tensors and the strips of
// csr_conv.
//
// A RowMap says which real columns a packed row holds: `count` of them from `first` on, every `step`-th, at packed
// columns `lead` onwards; everything else in a packed row is zero. Zeros, not leftovers: what the microkernels read
// there is multiplied, and a NaN from another channel must not be.
#pragma once

#include <cstring>

#include "kernels.h"

namespace lth {

struct RowMap {
  int64_t lead, first, step, count;
};

// One block of images of a tensor: where its first pixel is, and how far it is from one image, channel, pixel to the
// next. Contiguous tensors have pixel 1; feature-major ones hold all images of a pixel side by side.
template <class T>
struct Images {
  T* data;
  int64_t image, channel, pixel;
};

template <class T>
Images<T> images_of(bool feature_major, T* data, int64_t n, int64_t channels, int64_t plane, int64_t first) {
  if (feature_major) return {data + first, 1, plane * n, n};
  return {data + first * channels * plane, channels * plane, plane, 1};
}

// `rows` rows, `from_pitch` pixels apart, to packed rows `to_pitch` elements apart: row[column * images + i] for the
// columns of `map`, zero for the images that do not exist. Borders stay as they are, except in rows of a single image,
// which are written whole, row_lanes columns of them. temporary: rows * width * images.
template <class T>
void pack_rows(const Kernels<T>& k, const T* src, const Images<const T>& from, int64_t live, int64_t images,
               int64_t rows, int64_t from_pitch, int64_t width, const RowMap& map, int64_t row_lanes, T* packed,
               int64_t to_pitch, T* temporary) {
  T* data = packed + map.lead * images;
  const int64_t columns = map.step == 1 ? map.count : (map.count - 1) * map.step + 1;
  const int64_t run = map.count * images;
  const T* p = src + map.first * from.pixel;
  if (images == 1 && from.pixel == 1) {
    k.shift_rows(p, from_pitch, rows, map.lead, map.count, map.step, packed, to_pitch, row_lanes);
    return;
  }
  if (map.count == 0) return;
  if (map.step == 1 && from.pixel == images) {  // packed already
    const bool joined = from_pitch == map.count && to_pitch == run;
    k.copy_runs(p, from_pitch * from.pixel, joined ? 1 : rows, joined ? rows * run : run, data, to_pitch,
                joined ? rows * run : run);
    return;
  }
  if (from.pixel > 1) {
    for (int64_t r = 0; r < rows; ++r, data += to_pitch, p += from_pitch * from.pixel)
      k.copy_runs(p, map.step * from.pixel, map.count, live, data, images, images);
    return;
  }
  // Short rows are transposed together, so that blocks of the transposition are full.
  const bool together = from_pitch == width && 2 * columns <= k.lanes;
  if (together) k.transpose(src, from.image, live, rows * width, temporary, images, images);
  for (int64_t r = 0; r < rows; ++r, data += to_pitch, p += from_pitch) {
    if (map.step == 1 && !together) {
      k.transpose(p, from.image, live, columns, data, images, images);
      continue;
    }
    if (!together) k.transpose(p, from.image, live, columns, temporary, images, images);
    const T* const row = together ? temporary + (r * width + map.first) * images : temporary;
    if (map.step == 1)
      k.copy_runs(row, run, 1, run, data, run, run);
    else
      k.copy_runs(row, map.step * images, map.count, images, data, images, images);
  }
}

// `rows` rows of `width` pixels, `from_pitch` elements apart, to the rows of one channel, which follow each other.
template <class T>
void unpack_rows(const Kernels<T>& k, const T* packed, int64_t from_pitch, int64_t rows, int64_t width, int64_t live,
                 int64_t images, T* dst, const Images<T>& to) {
  if (from_pitch == width * images) {
    width *= rows;
    rows = 1;
  }
  if (to.pixel == images) {
    k.copy_runs(packed, from_pitch, rows, width * images, dst, width * to.pixel, width * images);
    return;
  }
  for (int64_t r = 0; r < rows; ++r, packed += from_pitch, dst += width * to.pixel) {
    if (to.pixel == 1)
      k.transpose(packed, images, width, live, dst, to.image, width);
    else
      k.copy_runs(packed, images, width, live, dst, to.pixel, live);
  }
}

// Asks for `count` elements of each image before they are needed. The images of a tensor lie far apart, often at a
// power of two: no hardware prefetcher follows that, and packing would wait for memory once for every row of every
// image.
template <bool kWrite, class T>
void prefetch(const T* p, int64_t image_pitch, int64_t live, int64_t count) {
  for (int64_t i = 0; i < live; ++i) {
    for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(p + i * image_pitch + j, kWrite ? 1 : 0);
  }
}

}  // namespace lth
