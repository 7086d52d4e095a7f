// The forward pass of a convolution around any sparse product: packing, the walk over the output, unpacking.
//
// Threads share (image block, group of output rows) pairs. A thread walks its groups in bands: it packs the input rows
// of a band (those shared with the band before are still there), lets the weight multiply each strip of a group into
// all output channels, and unpacks what was not written to its place. See csr_conv.h for the packing and
// conv_geometry.h for the strips.
//
// A weight knows nothing of this. It has
//     void prepare(int thread, int team) const;         called by all threads first; complete when all have returned
//     Range channels(int part, int parts) const;        a fair share of the output channels
//     void multiply(const T* in, Range channels, int64_t block, Range taps, const Target<T>& out) const;
//     bool in_place() const;                            whether `out` may lead to y itself: it writes no padding
// where `in` is the strip that offset 0 stands for, block one of `blocks` of the reduction (all but the first add to
// what is there), and taps with row shifts outside of `taps` meet nothing but padding.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "conv_geometry.h"
#include "conv_rows.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {

constexpr int64_t kBandBytes = 512 << 10;
constexpr int64_t kBlockBytes = 48 << 10;  // of input that one block of the reduction touches: mostly in L1

struct Forward {
  Geometry g;
  PlaneTiling t;
  int64_t row_pitch;      // elements from one packed row to the next of the same virtual channel
  int64_t channel_pitch;  // from one virtual channel to the next
  int64_t unit;           // of the offsets: all of them are multiples of it
  int64_t row_lanes;      // lanes of a row with its border
  int64_t out_row;        // elements from one row of the output to the next, before unpacking
  int64_t out_pitch;      // from one output channel to the next
  int64_t group, band;    // output rows that are unpacked together, packed together
  int64_t groups;         // of each image block
  int64_t in_elements, out_elements;
  int64_t block_channels, blocks;  // of the reduction: channels of a group that are read together
  std::vector<RowMap> maps;        // by x phase

  // `rows`: output channels that the weight writes, padding to whole panels included. `entries`: how many non-zeros (or
  // columns) it has for each row (or panel); blocks with fewer than `least` are not worth reloading the accumulators.
  Forward(const ConvSizes& s, int64_t rows, double entries, double least, int64_t lanes, int64_t widest, int64_t bytes,
          int threads);

  // Offset of a tap on channel 0 of its group from the strip of its output, in units.
  int64_t tap(int64_t ky, int64_t kx) const {
    const int64_t row = g.y.shift[static_cast<size_t>(ky)] * row_pitch;
    return (row + g.phase_of(ky, kx) * channel_pitch + g.x.shift[static_cast<size_t>(kx)] * t.images) / unit;
  }
  // The row shifts at which some phase of the input has pixels for an output row.
  Range taps(int64_t row) const {
    return {std::min(std::max<int64_t>(0, g.y.any.begin - row), g.y.max_shift + 1),
            std::max<int64_t>(0, std::min(g.y.max_shift + 1, g.y.any.end - row))};
  }
  int64_t channel_units() const { return g.phases * channel_pitch / unit; }  // from one channel to the next
  int64_t span() const { return in_elements / unit; }                        // all offsets are below
};

// Channel o is read from from + o * from_pitch, by all blocks but the first, and written to to + o * to_pitch.
template <class T>
struct Target {
  const T* from;
  int64_t from_pitch;
  T* to;
  int64_t to_pitch;
  int64_t tile;        // registers of the strip
  const Place* place;  // of its registers; null where they are adjacent
  bool relu;           // of what is written
  bool far;            // `to` is y itself, in no cache
};

// One thread's share of the work.
template <class T, class Weight>
struct ForwardWorker {
  const ConvSizes& s;
  const Forward& f;
  const Kernels<T>& k;
  const Weight& weight;
  const T* x;
  T* y;
  T* in;
  T* out;
  T* temporary;
  bool relu;
  Range channels;
  int64_t image = 0, live = 0;

  // Whatever is not a pixel of x within a row that holds some; packing leaves it alone, except where it writes whole
  // rows.
  void clear_borders() {
    const Geometry& g = f.g;
    if (f.t.images == 1 && !s.feature_major) return;
    for (int64_t c = 0; c < g.virtual_channels; ++c) {
      const RowMap& map = f.maps[static_cast<size_t>(c % g.x.phases())];
      for (int64_t v = 0; v < f.band + g.y.max_shift; ++v) {
        T* const row = in + c * f.channel_pitch + v * f.row_pitch;
        const int64_t begin = map.lead * f.t.images, end = begin + map.count * f.t.images;
        std::memset(row, 0, static_cast<size_t>(begin) * sizeof(T));
        std::memset(row + end, 0, static_cast<size_t>(f.row_lanes - end) * sizeof(T));
      }
    }
  }

  void keep_rows(int64_t from, int64_t count) {  // to the beginning of the band
    for (int64_t v = 0; v < count; ++v) {
      for (int64_t c = 0; c < f.g.virtual_channels; ++c) {
        T* const row = in + c * f.channel_pitch + v * f.row_pitch;
        std::memcpy(row, row + from * f.row_pitch, static_cast<size_t>(f.row_lanes) * sizeof(T));
      }
    }
  }

  // Virtual rows [begin, end) of all channels to rows `at` onwards of the band.
  void pack(int64_t begin, int64_t end, int64_t at) {
    const Geometry& g = f.g;
    const Images<const T> from = images_of(s.feature_major, x, s.n, s.channels, s.height * s.width, image);
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t fy = 0; fy < g.y.phases(); ++fy) {
        T* const channel = in + (c * g.phases + fy * g.x.phases()) * f.channel_pitch;
        const Range inside = g.y.inside[static_cast<size_t>(fy)];
        const int64_t first = std::min(std::max(begin, inside.begin), end);
        const int64_t last = std::max(first, std::min(end, inside.end));
        for (int64_t v = begin; v < end; ++v) {
          if (v >= first && v < last) continue;
          for (int64_t fx = 0; fx < g.x.phases(); ++fx) {
            T* const row = channel + fx * f.channel_pitch + (v - begin + at) * f.row_pitch;
            std::memset(row, 0, static_cast<size_t>(f.row_lanes) * sizeof(T));
          }
        }
        if (first == last) continue;
        const T* const src = from.data + c * from.channel + g.y.real(first, fy) * s.width * from.pixel;
        if (fy == 0 && c + 1 < s.channels) {
          const int64_t pixels = ((last - first - 1) * g.y.stride + 1) * s.width;
          if (s.feature_major) prefetch<false>(src + from.channel, 0, 1, pixels * s.n);
          else prefetch<false>(src + from.channel, from.image, live, pixels);
        }
        for (int64_t fx = 0; fx < g.x.phases(); ++fx) {
          pack_rows(k, src, from, live, f.t.images, last - first, g.y.stride * s.width, s.width,
                    f.maps[static_cast<size_t>(fx)], f.row_lanes,
                    channel + fx * f.channel_pitch + (first - begin + at) * f.row_pitch, f.row_pitch, temporary);
        }
      }
    }
  }

  // Whether the lanes of a run lie in y as they do here.
  bool adjacent(const Images<T>& to) const {
    return to.pixel == f.t.images && (f.t.joined == 1 || f.row_lanes == s.out_w * f.t.images);
  }

  // Whether the last block writes strips to y at once: they lie there likewise, or registers are parts of a pixel.
  bool in_place(const Images<T>& to) const {
    return weight.in_place() && (adjacent(to) || (to.pixel > 1 && f.t.images % k.lanes == 0));
  }

  // Where the registers of the strip at `lane` of a run belong in y, from the run's first pixel on.
  void find_places(const Images<T>& to, int64_t lane, int64_t live_lanes, int64_t tile, Place* place) const {
    for (int64_t i = 0; i < tile; ++i, lane += k.lanes) {
      if (adjacent(to)) {
        place[i] = {lane, std::max<int64_t>(0, std::min(k.lanes, live_lanes - lane))};
        continue;
      }
      const int64_t row = lane / f.row_lanes, column = lane % f.row_lanes / f.t.images, first = lane % f.t.images;
      const bool pixel = lane < live_lanes && column < s.out_w;
      place[i] = {(row * s.out_w + column) * to.pixel + first,
                  pixel ? std::max<int64_t>(0, std::min(k.lanes, live - first)) : 0};
    }
  }

  void compute(const Images<T>& to, int64_t row_in_band, int64_t top, int64_t rows) {
    const bool direct = in_place(to);
    const int64_t live_lanes = (f.t.joined > 1 ? (rows - 1) * f.row_lanes : 0) + s.out_w * f.t.images;  // of a run
    Place place[kMaxTile];
    for (int64_t run = 0; run < ceil_div(rows, f.t.joined); ++run) {
      const Range taps = f.t.joined > 1 ? Range{0, f.g.y.max_shift + 1} : f.taps(top + run);
      const T* const from = in + (row_in_band + run * f.t.joined) * f.row_pitch;
      T* const there = to.data + (top + run) * s.out_w * to.pixel;
      for (int64_t lane = 0, tile = 0; lane < live_lanes; lane += tile * k.lanes) {
        const int64_t left = ceil_div(live_lanes - lane, k.lanes);
        tile = ceil_div(left, ceil_div(left, f.t.tile));  // strips as equal as they can be
        T* const here = out + run * f.out_row + lane;
        const bool whole = adjacent(to) && lane + tile * k.lanes <= live_lanes;
        if (direct && !whole) find_places(to, lane, live_lanes, tile, place);
        for (int64_t block = 0; block < f.blocks; ++block) {
          const bool last = block + 1 == f.blocks;
          Target<T> target{here, f.out_pitch, here, f.out_pitch, tile, nullptr, last && relu, last && direct};
          if (last && direct) {
            target.to = whole ? there + lane : there;
            target.to_pitch = to.channel;
            target.place = whole ? nullptr : place;
          }
          weight.multiply(from + lane, channels, block, taps, target);
        }
      }
    }
  }

  void unpack(const Images<T>& to, int64_t top, int64_t rows) {
    if (in_place(to)) return;
    for (int64_t o = channels.begin; o < channels.end; ++o) {
      T* const dst = to.data + o * to.channel + top * s.out_w * to.pixel;
      unpack_rows(k, out + o * f.out_pitch, f.out_row, rows, s.out_w, live, f.t.images, dst, to);
    }
  }

  void work(Range items) {
    const int64_t max_shift = f.g.y.max_shift;
    int64_t packed_until = 0;  // virtual row up to which the band before has packed, of the same image block
    for (int64_t i = items.begin; i < items.end;) {
      const int64_t top = i % f.groups * f.group;
      const int64_t count = std::min({f.band / f.group, f.groups - i % f.groups, items.end - i});
      const int64_t rows = std::min(count * f.group, s.out_h - top);
      image = i / f.groups * f.t.images;
      live = std::min(f.t.images, s.n - image);
      const Images<T> to = images_of(s.feature_major, y, s.n, s.out_channels, s.out_h * s.out_w, image);
      const int64_t kept = i > items.begin && top > 0 ? packed_until - top : 0;  // at the end of the band before
      if (kept > 0) keep_rows(f.band, kept);
      packed_until = top + rows + max_shift;
      pack(top + kept, packed_until, kept);
      for (int64_t row = 0; row < rows; row += f.group) {
        const int64_t here = std::min(f.group, rows - row);
        compute(to, row, top + row, here);
        unpack(to, top + row, here);
      }
      i += count;
    }
  }
};

template <class T, class Weight>
void convolve(const ConvSizes& s, const Forward& f, const Kernels<T>& k, const Weight& weight, const T* x, T* y,
              bool relu, int threads) {
  const int64_t temporary_elements = (f.band + f.g.y.max_shift) * s.width * f.t.images;
  Plan plan;
  const size_t in_at = plan.add<T>(f.in_elements, threads);
  const size_t out_at = plan.add<T>(f.out_elements, threads);
  const size_t temporary_at = plan.add<T>(temporary_elements, threads);
  const Scratch scratch(plan);
  parallel(threads, [&](int thread, int team) {
    weight.prepare(thread, team);
    const Grid grid = split_team(team, f.t.blocks * f.groups);
    ForwardWorker<T, Weight> worker{s,
                                    f,
                                    k,
                                    weight,
                                    x,
                                    y,
                                    scratch.at<T>(in_at, f.in_elements, thread),
                                    scratch.at<T>(out_at, f.out_elements, thread),
                                    scratch.at<T>(temporary_at, temporary_elements, thread),
                                    relu,
                                    weight.channels(thread % grid.channels, grid.channels)};
    worker.clear_borders();
    worker.work(share(f.t.blocks * f.groups, thread / grid.channels, grid.rows));
  });
}

}  // namespace lth
