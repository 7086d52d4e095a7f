// The backward pass of a convolution for weights of any format whose entries can be listed column by column. Threads
// share the (image block, input row) pairs; see csr_conv.h for the packing.
//
// The entries are first sorted by the virtual input channel they read. Then a thread packs a band of rows of x and the
// rows of dy, with a border of zeros, that its taps reach; csr_backward (bsr_backward) holds the strips of x and dx of
// one channel in registers and meets each shifted strip of dy once. Each part of the rows adds up its own dW; the parts
// are summed, in a fixed order, at the end.
#pragma once

#include "conv_bands.h"
#include "conv_geometry.h"
#include "conv_transposed.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {

constexpr int64_t kChannelCost = 4;  // of a virtual input channel, in non-zeros
constexpr int64_t kAhead = 2;        // channels for which packing asks for memory before it is needed
// Up to so many non-zeros, one thread sorts: quicker than waiting for each other three times.
constexpr int64_t kSerialNonZeros = 1 << 16;

// What is read and written, and its strides: those of y are grad's, those of x are dx's too.
template <class T>
struct Tensors {
  const T* grad;
  const T* input;  // null when dvalues is not wanted
  T* dx;           // null when not wanted
  ImageStrides y, x;
  bool in_place;  // strips of x and dx are used where they are
};

// dbias[o] = sum of dy over images and pixels, straight from the tensor. sums: a register for each output channel.
template <class T>
void bias_gradient(const ConvSizes& s, const Kernels<T>& k, const Tensors<T>& to, T* sums, T* dbias, int thread,
                   int team) {
  const Range mine = share(s.out_channels, thread, team);
  const int64_t plane = s.out_h * s.out_w;
  if (to.y.feature_major()) {
    for (int64_t o = mine.begin; o < mine.end; ++o) dbias[o] = k.sum(to.grad + o * to.y.channel, plane * s.n);
    return;
  }
  // Image by image, which is how they lie in memory.
  for (int64_t n = 0; n < s.n; ++n) {
    k.add_runs(to.grad + (n * s.out_channels + mine.begin) * plane, mine.end - mine.begin, plane, n > 0,
               sums + mine.begin * k.lanes);
  }
  for (int64_t o = mine.begin; o < mine.end; ++o) dbias[o] = k.sum(sums + o * k.lanes, k.lanes);
}

// For each row of x, whether some output reads it.
inline std::vector<char> rows_read(const ConvSizes& s, const Geometry& g) {
  std::vector<char> read(static_cast<size_t>(s.height), 0);
  for (int64_t f = 0; f < g.y.phases(); ++f) {
    const Range r = g.y.inside[static_cast<size_t>(f)];
    for (int64_t v = r.begin; v < r.end; ++v) read[static_cast<size_t>(g.y.real(v, f))] = g.x.any.end > g.x.any.begin;
  }
  return read;
}

// Zeros for the other rows of dx.
template <class T>
void clear_unread_rows(const ConvSizes& s, const std::vector<char>& read, const Tensors<T>& to, int thread, int team) {
  // The images of a feature-major row are neighbours.
  const int64_t images = to.x.feature_major() ? s.n : 1;
  const Range planes = share(s.n / images * s.channels, thread, team);
  for (int64_t y = 0; y < s.height; ++y) {
    if (read[static_cast<size_t>(y)]) continue;
    for (int64_t p = planes.begin; p < planes.end; ++p) {
      std::memset(to.dx + (p * s.height + y) * s.width * images, 0, static_cast<size_t>(s.width * images) * sizeof(T));
    }
  }
}

// What one thread does to bands of rows of the virtual input of one image block.
template <class T, class Offset, int Rows>
struct Worker {
  const ConvSizes& s;
  const Backward& b;
  const Kernels<T>& k;
  Tensors<T> to;
  Sorted<T, Offset> sorted;
  T* dw;  // null when not wanted
  Range channels;
  T* packed_dy;
  T* packed_x;
  T* packed_dx;
  T* temporary;
  int64_t image = 0, live = 0;
  int64_t first_dy = 0, packed_until = 0;  // rows of dy that are packed, the first at the start of packed_dy

  // An entry may reach over the last output channel.
  void clear_missing_channels() {
    const int64_t there = s.out_channels * b.dy_pitch;
    if (there == b.dy_row) return;
    for (int64_t r = 0; r < b.dy_rows; ++r)
      std::fill(packed_dy + r * b.dy_row + there, packed_dy + (r + 1) * b.dy_row, T(0));
  }

  // Rows [from, until) of dy become available. Those before `from` are not needed any more; keep: those from there on
  // up to packed_until are there already.
  void pack_dy(int64_t from, int64_t until, bool keep) {
    if (!keep) {
      first_dy = packed_until = from;
    } else if (until - first_dy > b.dy_rows) {
      std::memmove(packed_dy, packed_dy + (from - first_dy) * b.dy_row,
                   static_cast<size_t>((packed_until - from) * b.dy_row) * sizeof(T));
      first_dy = from;
    }
    const int64_t first = std::max<int64_t>(0, packed_until), rows = std::min(until, s.out_h) - first;
    T* const packed = packed_dy + (first - first_dy) * b.dy_row;
    packed_until = until;
    if (rows <= 0) return;
    const T* const source = to.grad + image * to.y.image + first * s.out_w * to.y.pixel;
    for (int64_t o = 0; o < s.out_channels; ++o) {
      if (o + kAhead < s.out_channels) ahead<false>(source + (o + kAhead) * to.y.channel, to.y, rows * s.out_w);
      pack_band(k, source + o * to.y.channel, to.y, {s.out_w, live, b.t.images}, b.dy_map, rows,
                packed + o * b.dy_pitch, b.dy_row, b.dy_pitch, temporary);
    }
  }

  template <bool kWrite>
  void ahead(const T* p, const ImageStrides& strides, int64_t pixels) {
    if (!strides.feature_major()) {
      prefetch<kWrite>(p, strides.image, live, pixels);
    } else if (live < s.n) {
      prefetch<kWrite>(p, strides.pixel, pixels, live);
    }
  }

  // Calls body(first virtual row, rows, first real row) for the rows of [top, top + rows) that lie inside of phase fy.
  template <class Body>
  void rows_inside(int64_t top, int64_t rows, int64_t fy, Body&& body) {
    const Axis& y = b.g.y;
    const Range r = y.inside[static_cast<size_t>(fy)];
    const int64_t from = std::max(top, r.begin), until = std::min(top + rows, r.end);
    if (y.stride == 1) {
      if (from < until) body(from, until - from, y.real(from, fy));
    } else {
      for (int64_t v = from; v < until; ++v) body(v, 1, y.real(v, fy));
    }
  }

  void pack_x(int64_t top, int64_t rows) {
    const Geometry& g = b.g;
    for (int64_t fy = 0; fy < g.y.phases(); ++fy) {
      for (int64_t v = top; v < top + rows; ++v) {
        if (g.y.is_inside(v, fy)) continue;
        for (int64_t c = channels.begin; c < channels.end; ++c) {
          std::memset(packed_x + (v - top) * b.x_row + (c * g.phases + fy * g.x.phases()) * b.t.row_lanes, 0,
                      static_cast<size_t>(g.x.phases() * b.t.row_lanes) * sizeof(T));
        }
      }
      rows_inside(top, rows, fy, [&](int64_t v, int64_t count, int64_t real) {
        const T* const source = to.input + image * to.x.image + real * s.width * to.x.pixel;
        for (int64_t c = channels.begin; c < channels.end; ++c) {
          if (c + kAhead < channels.end) ahead<false>(source + (c + kAhead) * to.x.channel, to.x, count * s.width);
          T* p = packed_x + (v - top) * b.x_row + (c * g.phases + fy * g.x.phases()) * b.t.row_lanes;
          for (int64_t fx = 0; fx < g.x.phases(); ++fx, p += b.t.row_lanes) {
            pack_band(k, source + c * to.x.channel, to.x, {s.width, live, b.t.images}, b.maps[static_cast<size_t>(fx)],
                      count, p, b.x_row, b.t.row_lanes, temporary);
          }
        }
      });
    }
  }

  void compute(int64_t v, int64_t row_in_band) {
    const Geometry& g = b.g;
    const RowTiling& t = b.t;
    const auto& ops = k.template indexed<Offset>();
    const int64_t first = channels.begin * g.phases, count = (channels.end - channels.begin) * g.phases;
    const Range shifts = b.shifts_of(v);
    const T* x = packed_x + row_in_band * b.x_row + first * t.row_lanes;
    T* dx = packed_dx + row_in_band * b.x_row + first * t.row_lanes;
    int64_t pitch = t.row_lanes;
    if (to.in_place) {
      const int64_t at = image * to.x.image + first * to.x.channel + g.y.real(v, 0) * s.width * to.x.pixel;
      x = to.input + at;
      dx = to.dx + at;
      pitch = to.x.channel;
    }
    for (int64_t strip = 0; strip < t.strips; ++strip) {
      const T* const dy = packed_dy + (v - g.y.max_shift - first_dy) * b.dy_row + strip * t.lanes;
      for (int64_t block = 0; block < b.blocks; ++block) {
        const int64_t bucket = block * g.virtual_channels + first;
        const int32_t* const begin = sorted.begin(b, shifts.begin) + bucket;
        const int32_t* const end = sorted.begin(b, shifts.end) + bucket;
        if constexpr (Rows > 1) {
          (to.dx != nullptr ? ops.bsr_backward : ops.bsr_sddmm)[Rows][t.tile](
              {x + strip * t.lanes, pitch, dy, sorted.offset, b.unit, b.dy_pitch, sorted.values, begin, end, count,
               block > 0, dx + strip * t.lanes, pitch, dw});
        } else if (dw != nullptr) {
          (to.dx != nullptr ? ops.backward : ops.sddmm)[t.tile](
              {x + strip * t.lanes, pitch, dy, sorted.offset, b.unit, sorted.values, begin, end, count, block > 0,
               dx + strip * t.lanes, pitch, dw});
        } else {
          ops.spmm[t.tile]({dy, sorted.offset, b.unit, sorted.values, begin, end, count, nullptr, block > 0,
                            dx + strip * t.lanes, pitch});
        }
      }
    }
  }

  void unpack_dx(int64_t top, int64_t rows) {
    const Geometry& g = b.g;
    for (int64_t fy = 0; fy < g.y.phases(); ++fy) {
      rows_inside(top, rows, fy, [&](int64_t v, int64_t count, int64_t real) {
        T* const target = to.dx + image * to.x.image + real * s.width * to.x.pixel;
        for (int64_t c = channels.begin; c < channels.end; ++c) {
          if (c + kAhead < channels.end) ahead<true>(target + (c + kAhead) * to.x.channel, to.x, count * s.width);
          unpack_band(k, packed_dx + (v - top) * b.x_row + (c * g.phases + fy * g.x.phases()) * b.t.row_lanes, b.x_row,
                      b.t.row_lanes, b.maps, count, {s.width, live, b.t.images}, target + c * to.x.channel, to.x,
                      temporary);
        }
      });
    }
  }
};

template <int Rows, class T, class Index, class Offset>
void run(const ConvSizes& s, const Backward& b, const Kernels<T>& k, const Tensors<T>& to, T* dvalues, T* dbias,
         const Transposed<T, Index>& w, int64_t entries, int threads) {
  const int64_t nnz = entries * Rows;
  const Geometry& g = b.g;
  const int64_t first_row = g.y.any.begin, height = g.x.any.end == g.x.any.begin ? 0 : g.y.any.end - g.y.any.begin;
  const bool dw = dvalues != nullptr, dx = to.dx != nullptr;
  const std::vector<Tap> order = taps_of(s, b);
  const std::vector<char> read = rows_read(s, g);
  const int64_t band_elements = to.in_place ? 0 : b.band * b.x_row;
  const int64_t temporary_elements = std::max(s.width, s.out_w) * b.t.images * (b.band + g.y.max_shift);
  const int64_t columns = s.channels / s.groups * static_cast<int64_t>(order.size());

  Plan plan;
  const size_t offset_at = plan.add<Offset>(entries);
  const size_t values_at = plan.add<T>(dx ? nnz : 0);
  const size_t source_at = plan.add<int32_t>(entries);
  const size_t pointers_at =
      plan.add<int32_t>((static_cast<int64_t>(b.shifts.size()) + 1) * (b.buckets() + 1));
  const size_t cuts_at = plan.add<int32_t>(columns * (s.groups * b.blocks + 1));
  const size_t dw_at = plan.add<T>(dw ? nnz : 0, threads);
  const size_t dy_at = plan.add<T>(b.dy_rows * b.dy_row, threads);
  const size_t x_at = plan.add<T>(dw ? band_elements : 0, threads);
  const size_t dx_at = plan.add<T>(dx ? band_elements : 0, threads);
  const size_t temporary_at = plan.add<T>(temporary_elements, threads);
  const size_t sums_at = plan.add<T>(dbias != nullptr ? s.out_channels * k.lanes : 0);
  const Scratch scratch(plan);
  const Sorted<T, Offset> sorted{scratch.at<Offset>(offset_at), dx ? scratch.at<T>(values_at) : nullptr,
                                 scratch.at<int32_t>(source_at), scratch.at<int32_t>(pointers_at),
                                 scratch.at<int32_t>(cuts_at)};

  const bool gradients = dw || dx, serial = nnz <= kSerialNonZeros;
  if (gradients && serial) sort<Rows>(s, b, order, w, sorted, 0, 1);
  parallel(threads, [&](int thread, int team) {
    if (dbias != nullptr) bias_gradient(s, k, to, scratch.at<T>(sums_at), dbias, thread, team);
    if (!gradients) return;
    if (dx) clear_unread_rows(s, read, to, thread, team);
    if (!serial) sort<Rows>(s, b, order, w, sorted, thread, team);

    Grid grid = split_team(team, b.t.blocks * height);
    if (b.blocks > 1) grid = {team, 1};  // with blocks the pointers no longer say where to cut the channels
    const int row_part = thread / grid.channels, channel_part = thread % grid.channels;
    const auto channel_at = [&](int part) {
      const int64_t weight = entries + kChannelCost * g.virtual_channels;
      return row_at(sorted.pointers, g.virtual_channels, kChannelCost, weight * part / grid.channels, g.phases) /
             g.phases;
    };
    const Range channels =
        grid.channels == 1 ? Range{0, s.channels} : Range{channel_at(channel_part), channel_at(channel_part + 1)};
    const Range non_zeros = grid.channels == 1 ? Range{0, entries}
                                               : Range{sorted.pointers[channels.begin * g.phases],
                                                       sorted.pointers[channels.end * g.phases]};
    T* const my_dw = dw ? scratch.at<T>(dw_at, nnz, row_part) : nullptr;
    if (dw) std::fill(my_dw + non_zeros.begin * Rows, my_dw + non_zeros.end * Rows, T(0));

    Worker<T, Offset, Rows> work{s,
                           b,
                           k,
                           to,
                           sorted,
                           my_dw,
                           channels,
                           scratch.at<T>(dy_at, b.dy_rows * b.dy_row, thread),
                           scratch.at<T>(x_at, dw ? band_elements : 0, thread),
                           scratch.at<T>(dx_at, dx ? band_elements : 0, thread),
                           scratch.at<T>(temporary_at, temporary_elements, thread)};
    work.clear_missing_channels();
    const Range mine = share(b.t.blocks * height, row_part, grid.rows);
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t top = first_row + i % height, rows = std::min({b.band, first_row + height - top, mine.end - i});
      work.image = i / height * b.t.images;
      work.live = std::min(b.t.images, s.n - work.image);
      work.pack_dy(top - g.y.max_shift, top + rows, i > mine.begin && top > first_row);
      if (dw && !to.in_place) work.pack_x(top, rows);
      for (int64_t row = 0; row < rows; ++row) work.compute(top + row, row);
      if (dx && !to.in_place) work.unpack_dx(top, rows);
      i += rows;
    }
    if (!dw) return;
    barrier(team);
    const Range sums = share(entries, thread, team);
    for (int64_t i = sums.begin; i < sums.end; ++i) {
      for (int64_t r = 0; r < Rows; ++r) {
        T total = scratch.at<T>(dw_at)[i * Rows + r];
        for (int part = 1; part < grid.rows; ++part) total += scratch.at<T>(dw_at, nnz, part)[i * Rows + r];
        const int64_t at = sorted.source[i] + r * w.stride;
        if (w.mask == nullptr || w.mask[at] != 0) dvalues[at] = total;
      }
    }
  });
}

// Gradients for a weight of `entries` entries of Rows output channels each. Any of dx, dvalues and dbias may be null;
// of dvalues only those of entries (and, with a mask, live ones) are written.
template <int Rows, class T, class Index>
void backward(const ConvSizes& sizes, const T* grad, const T* x, T* dx, T* dvalues, T* dbias,
              const Transposed<T, Index>& w, int64_t entries, bool grad_feature_major, bool x_feature_major,
              int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t widest = dvalues != nullptr ? k.backward_tile : k.spmm_tile, nnz = entries * Rows;
  const bool feature_major = grad_feature_major || x_feature_major;
  const ConvSizes s = join_rows(sizes, sizes.out_channels * int64_t{sizeof(T)},
                                static_cast<double>(nnz) / static_cast<double>(std::max<int64_t>(1, sizes.channels)),
                                feature_major, k.lanes, widest);
  if (s.n == 0 || s.out_channels == 0 || s.channels == 0 || s.out_h == 0 || s.out_w == 0) {
    if (dx != nullptr) std::memset(dx, 0, static_cast<size_t>(s.n * s.channels * s.height * s.width) * sizeof(T));
    if (dvalues != nullptr) {
      for (int64_t i = 0; i < entries; ++i)
        for (int64_t r = 0; r < Rows; ++r) dvalues[w.perm[i] + r * w.stride] = 0;
    }
    if (dbias != nullptr && s.channels > 0) std::memset(dbias, 0, static_cast<size_t>(s.out_channels) * sizeof(T));
    if (s.channels > 0 || dbias == nullptr) return;
  }
  const Backward b(s, feature_major, nnz, Rows, k.lanes, widest, sizeof(T));
  Tensors<T> to{grad,
                x,
                dx,
                ImageStrides(s.n, s.out_channels, s.out_h * s.out_w, grad_feature_major),
                ImageStrides(s.n, s.channels, s.height * s.width, x_feature_major),
                false};
  to.in_place = b.whole_rows(s) && (to.x.feature_major() ? b.t.images == s.n : b.t.images == 1);
  const double work = static_cast<double>(nnz + kChannelCost * b.g.virtual_channels) *
                      static_cast<double>(b.t.blocks * b.t.row_lanes * (b.g.y.any.end - b.g.y.any.begin));
  threads = useful_threads(threads, 2 * work);
  const int64_t span = (b.g.y.max_shift + 1) * b.dy_row / b.unit;
  if (span <= 65536)
    run<Rows, T, Index, uint16_t>(s, b, k, to, dvalues, dbias, w, entries, threads);
  else
    run<Rows, T, Index, int32_t>(s, b, k, to, dvalues, dbias, w, entries, threads);
}

}  // namespace lth
