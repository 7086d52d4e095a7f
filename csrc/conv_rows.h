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

// packed[column * images + i] for packed columns up to row_lanes / images. `src`: the row in image 0; image i is i *
// image_pitch further; `live` images exist, the others are zero. `width` real columns; temporary: width * images
// elements if step > 1.
template <class T>
void pack_row(const Kernels<T>& k, const T* src, int64_t image_pitch, int64_t live, int64_t images, const RowMap& map,
              T* packed, int64_t row_lanes, T* temporary) {
  T* const data = packed + map.lead * images;
  const int64_t end = (map.lead + map.count) * images;
  std::memset(packed, 0, static_cast<size_t>(map.lead * images) * sizeof(T));
  if (map.step == 1) {
    k.transpose(src + map.first, image_pitch, live, map.count, data, images, images);
  } else if (map.count > 0) {
    const int64_t span = (map.count - 1) * map.step + 1;
    k.transpose(src + map.first, image_pitch, live, span, temporary, images, images);
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

}  // namespace lth
