// The backward pass of a convolution for weights of any format whose entries can be listed column by column. Threads
// share the (image block, input row) pairs; see csr_conv.h for the packing.
//
// The entries are first sorted by the virtual input channel they read. Then a thread packs a band of rows of x and the
// rows of dy, with a border of zeros, that its taps reach; csr_backward (bsr_backward) holds the strips of x and dx of
// one channel in registers and meets each shifted strip of dy once. Each part of the rows adds up its own dW; the parts
// are summed, in a fixed order, at the end.
#pragma once

#include "conv_bands.h"
#include "conv_dy.h"
#include "conv_geometry.h"
#include "conv_transposed.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {

constexpr int64_t kChannelCost = 4;  // of a virtual input channel, in non-zeros
// Up to so many non-zeros, one thread sorts: quicker than waiting for each other three times.
constexpr int64_t kSerialNonZeros = 1 << 16;

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
  PackedDy<T> dy;
  T* packed_x;
  T* packed_dx;
  T* temporary;
  int64_t image = 0, live = 0;

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
        const Pixels<T> pixels{k, to.input};
        for (int64_t c = channels.begin; c < channels.end; ++c) {
          if (c + kAhead < channels.end)
            ahead<false>(source + (c + kAhead) * to.x.channel, to.x, live, s.n, count * s.width);
          T* p = packed_x + (v - top) * b.x_row + (c * g.phases + fy * g.x.phases()) * b.t.row_lanes;
          for (int64_t fx = 0; fx < g.x.phases(); ++fx, p += b.t.row_lanes) {
            pack_band(pixels, source - to.input + c * to.x.channel, to.x, {s.width, live, b.t.images},
                      b.maps[static_cast<size_t>(fx)], count, p, b.x_row, b.t.row_lanes, temporary);
          }
        }
      });
    }
  }

  // Virtual rows from v on whose strips are one run: one, or all of a band.
  void compute(int64_t v, int64_t rows, int64_t row_in_band) {
    const Geometry& g = b.g;
    const RowTiling& t = b.t;
    const auto& ops = k.template indexed<Offset>();
    const int64_t first = channels.begin * g.phases, count = (channels.end - channels.begin) * g.phases;
    const T* x = packed_x + row_in_band * b.x_row + first * t.row_lanes;
    T* dx = packed_dx + row_in_band * b.x_row + first * t.row_lanes;
    int64_t pitch = t.row_lanes, run = t.row_lanes;
    if (to.in_place) {
      const int64_t at = image * to.x.image + first * to.x.channel + g.y.real(v, 0) * s.width * to.x.pixel;
      x = to.input + at;
      dx = to.dx + at;
      pitch = to.x.channel;
      run = rows * s.width * t.images;
    }
    const int64_t registers = ceil_div(run, k.lanes), strips = ceil_div(registers, b.widest);
    for (int64_t strip = 0; strip < strips; ++strip) {
      const Range part{registers * strip / strips, registers * (strip + 1) / strips};
      const int64_t tile = part.end - part.begin, lane = part.begin * k.lanes;
      const int64_t stop = std::min(run, part.end * k.lanes);
      const int tail = static_cast<int>(stop % k.lanes);
      const Range shifts = b.shifts_of(v + lane * rows / run, v + (stop - 1) * rows / run);
      const T* const from = dy.at(v) + lane;
      for (int64_t block = 0; block < b.blocks; ++block) {
        const int64_t bucket = block * g.virtual_channels + first;
        const int32_t* const begin = sorted.begin(b, shifts.begin) + bucket;
        const int32_t* const end = sorted.begin(b, shifts.end) + bucket;
        if constexpr (Rows > 1) {
          (to.dx != nullptr ? ops.bsr_backward : ops.bsr_sddmm)[Rows][tile](
              {x + lane, pitch, from, sorted.offset, b.unit, b.dy_pitch, sorted.values, begin, end, count, block > 0,
               dx + lane, pitch, dw, tail});
        } else if (dw != nullptr) {
          (to.dx != nullptr ? ops.backward : ops.sddmm)[tile]({x + lane, pitch, from, sorted.offset, b.unit,
                                                              sorted.values, begin, end, count, block > 0, dx + lane,
                                                              pitch, dw, tail});
        } else {
          ops.spmm[tile]({from, sorted.offset, b.unit, sorted.values, begin, end, count, nullptr, block > 0, dx + lane,
                          pitch});
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
          if (c + kAhead < channels.end)
            ahead<true>(target + (c + kAhead) * to.x.channel, to.x, live, s.n, count * s.width);
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
  const int64_t temporary_elements =
      b.planes ? 0 : std::max(s.width, s.out_w) * b.t.images * (b.band + g.y.max_shift);
  const int64_t columns = s.channels / s.groups * static_cast<int64_t>(order.size());

  Plan plan;
  const size_t offset_at = plan.add<Offset>(entries);
  const size_t values_at = plan.add<T>(dx ? nnz : 0);
  const size_t source_at = plan.add<int32_t>(entries);
  const size_t pointers_at =
      plan.add<int32_t>((static_cast<int64_t>(b.shifts.size()) + 1) * (b.buckets() + 1));
  const size_t cuts_at = plan.add<int32_t>(columns * (s.groups * b.blocks + 1));
  const size_t dw_at = plan.add<T>(dw ? nnz : 0, threads);
  const size_t dy_at = plan.add<T>(b.dy_size, threads);
  const size_t x_at = plan.add<T>(dw ? band_elements : 0, threads);
  const size_t dx_at = plan.add<T>(dx ? band_elements : 0, threads);
  const size_t temporary_at = plan.add<T>(temporary_elements, threads);
  const int64_t sums_elements = s.out_channels * k.lanes;
  const size_t sums_at = plan.add<T>(dbias != nullptr ? sums_elements : 0, threads);
  const size_t discard_at = plan.add<T>(k.lanes, threads);
  const Scratch scratch(plan);
  const Sorted<T, Offset> sorted{scratch.at<Offset>(offset_at), dx ? scratch.at<T>(values_at) : nullptr,
                                 scratch.at<int32_t>(source_at), scratch.at<int32_t>(pointers_at),
                                 scratch.at<int32_t>(cuts_at)};

  const bool gradients = dw || dx, serial = nnz <= kSerialNonZeros;
  const bool sums_packed = dbias != nullptr && gradients && height > 0 && b.packs_all(s);
  if (gradients && serial) sort<Rows>(s, b, order, w, sorted, 0, 1);
  parallel(threads, [&](int thread, int team) {
    if (dbias != nullptr && !sums_packed)
      bias_gradient(s, k, to, scratch.at<T>(sums_at), dbias, share(s.out_channels, thread, team));
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

    // Threads that share rows all pack the same dy: one of them adds it up.
    T* const my_sums =
        sums_packed && channel_part == 0 ? scratch.at<T>(sums_at, sums_elements, row_part) : nullptr;
    T* const temporary = scratch.at<T>(temporary_at, temporary_elements, thread);
    const PackedDy<T> dy{
        s, b, k, to, scratch.at<T>(dy_at, b.dy_size, thread), temporary, my_sums,
        scratch.at<T>(discard_at, k.lanes, thread)};
    Worker<T, Offset, Rows> work{s,
                                 b,
                                 k,
                                 to,
                                 sorted,
                                 my_dw,
                                 channels,
                                 dy,
                                 scratch.at<T>(x_at, dw ? band_elements : 0, thread),
                                 scratch.at<T>(dx_at, dx ? band_elements : 0, thread),
                                 temporary};
    work.dy.clear();
    const Range mine = share(b.t.blocks * height, row_part, grid.rows);
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t top = first_row + i % height, rows = std::min({b.band, first_row + height - top, mine.end - i});
      work.image = i / height * b.t.images;
      work.live = std::min(b.t.images, s.n - work.image);
      // The rows of dy that the first row of an image meets are its own, any other row owns the last that it meets.
      work.dy.provide(work.image, work.live, {top - g.y.max_shift, top + rows}, i > mine.begin && top > first_row,
                      top > first_row ? top : top - g.y.max_shift);
      if (dw && !to.in_place) work.pack_x(top, rows);
      for (int64_t row = 0, step = b.planes ? rows : 1; row < rows; row += step) work.compute(top + row, step, row);
      if (dx && !to.in_place) work.unpack_dx(top, rows);
      i += rows;
    }
    if (!dw && !sums_packed) return;
    barrier(team);
    if (sums_packed) {
      const Range mine = share(s.out_channels, thread, team);
      for (int64_t o = mine.begin; o < mine.end; ++o) {
        dbias[o] = 0;
        for (int part = 0; part < grid.rows; ++part)
          dbias[o] += k.sum(scratch.at<T>(sums_at, sums_elements, part) + o * k.lanes, k.lanes);
      }
    }
    if (!dw) return;
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
void backward(const ConvSizes& sizes, const T* grad, const T* activated, const T* x, T* dx, T* dvalues, T* dbias,
              const Transposed<T, Index>& w, int64_t entries, bool grad_feature_major, bool x_feature_major,
              int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t widest = dvalues != nullptr ? k.backward_tile : k.spmm_tile, nnz = entries * Rows;
  const bool feature_major = grad_feature_major || x_feature_major;
  ConvSizes s = join_rows(sizes, sizes.out_channels * int64_t{sizeof(T)},
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
  Backward b(s, false, feature_major, nnz, Rows, k.lanes, widest, sizeof(T));
  if (!feature_major && Backward::fits_planes(sizes, dvalues != nullptr, k.lanes)) {
    Backward planes(sizes, true, false, nnz, Rows, k.lanes, widest, sizeof(T));
    if (planes.cost < b.cost) {
      b = planes;
      s = sizes;
    }
  }
  Tensors<T> to{grad,
                activated,
                x,
                dx,
                ImageStrides(s.n, s.out_channels, s.out_h * s.out_w, grad_feature_major),
                ImageStrides(s.n, s.channels, s.height * s.width, x_feature_major),
                false};
  to.in_place = b.whole_rows(s) && (to.x.feature_major() ? b.t.images == s.n : b.t.images == 1) &&
                (dvalues != nullptr || s.width * b.t.images % k.lanes == 0);
  const double work = static_cast<double>(nnz + kChannelCost * b.g.virtual_channels) *
                      static_cast<double>(s.n * s.width * (b.g.y.any.end - b.g.y.any.begin));
  threads = useful_threads(threads, 2 * work);
  const int64_t span = (b.g.y.max_shift * b.dy_row + round_up(s.out_channels, Rows) * b.dy_pitch) / b.unit;
  if (span <= 65536)
    run<Rows, T, Index, uint16_t>(s, b, k, to, dvalues, dbias, w, entries, threads);
  else
    run<Rows, T, Index, int32_t>(s, b, k, to, dvalues, dbias, w, entries, threads);
}

}  // namespace lth
