// Gradients of conv2d(x, W) + bias. Threads share the (image block, input row) pairs; see csr_conv.h for the packing.
//
// Non-zeros are first sorted by the virtual input channel they read (a counting sort, on all threads). Then a thread
// packs a band of rows of x and the rows of dy, with a border of zeros, that its taps reach; csr_backward holds the
// strips of x and dx of one channel in registers and meets each shifted strip of dy once. Each part of the rows adds up
// its own dW; the parts are summed, in a fixed order, at the end.
#include "conv_geometry.h"
#include "conv_rows.h"
#include "conv_transposed.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kChannelCost = 4;  // of a virtual input channel, in non-zeros
// Up to so many non-zeros, one thread sorts: quicker than waiting for each other three times.
constexpr int64_t kSerialNonZeros = 1 << 16;

// dbias[o] = sum of dy over images and pixels, straight from the tensor.
template <class T>
void bias_gradient(const ConvSizes& s, const Kernels<T>& k, const T* grad, T* dbias, int thread, int team) {
  const Range mine = share(s.out_channels, thread, team);
  const int64_t plane = s.out_h * s.out_w;
  for (int64_t o = mine.begin; o < mine.end; ++o) {
    T total = 0;
    for (int64_t n = 0; n < s.n; ++n) total += k.sum(grad + (n * s.out_channels + o) * plane, plane);
    dbias[o] = total;
  }
}

// For each row of x, whether some output reads it.
std::vector<char> rows_read(const ConvSizes& s, const Geometry& g) {
  std::vector<char> read(static_cast<size_t>(s.height), 0);
  for (int64_t f = 0; f < g.y.phases(); ++f) {
    const Range r = g.y.inside[static_cast<size_t>(f)];
    for (int64_t v = r.begin; v < r.end; ++v) read[static_cast<size_t>(g.y.real(v, f))] = g.x.any.end > g.x.any.begin;
  }
  return read;
}

// Zeros for the other rows of dx.
template <class T>
void clear_unread_rows(const ConvSizes& s, const std::vector<char>& read, T* dx, int thread, int team) {
  const Range planes = share(s.n * s.channels, thread, team);
  for (int64_t y = 0; y < s.height; ++y) {
    if (read[static_cast<size_t>(y)]) continue;
    for (int64_t p = planes.begin; p < planes.end; ++p) {
      std::memset(dx + (p * s.height + y) * s.width, 0, static_cast<size_t>(s.width) * sizeof(T));
    }
  }
}

// What one thread does to one band: rows [top, top + rows) of the virtual input of one image block.
template <class T, class Offset>
struct Worker {
  const ConvSizes& s;
  const Backward& b;
  const Kernels<T>& k;
  const T* grad;
  const T* x;
  T* dx;
  Sorted<T, Offset> sorted;
  T* dw;  // null when not wanted
  Range channels;
  T* packed_dy;
  T* packed_x;
  T* packed_dx;
  T* temporary;
  int64_t image, live;

  void pack_dy(int64_t from, int64_t to, T* packed) {  // rows of dy, those outside of it as zeros
    for (int64_t o = 0; o < s.out_channels; ++o) {
      const T* const plane = grad + (image * s.out_channels + o) * s.out_h * s.out_w;
      if (o + 1 < s.out_channels) {
        const int64_t first = std::max<int64_t>(from, 0), last = std::min(to, s.out_h);
        prefetch<false>(plane + (s.out_h + first) * s.out_w, s.out_channels * s.out_h * s.out_w, live,
                        (last - first) * s.out_w);
      }
      for (int64_t row = from; row < to; ++row) {
        T* const p = packed + (row - from) * b.dy_row + o * b.dy_pitch;
        if (row < 0 || row >= s.out_h) {
          std::memset(p, 0, static_cast<size_t>(b.dy_pitch) * sizeof(T));
        } else {
          pack_row(k, plane + row * s.out_w, s.out_channels * s.out_h * s.out_w, live, b.t.images, b.dy_map, p,
                   b.dy_pitch, temporary);
        }
      }
    }
  }

  void pack_x(int64_t top, int64_t rows) {
    const Geometry& g = b.g;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      const T* const plane = x + (image * s.channels + c) * s.height * s.width;
      if (c + 1 < channels.end) {
        const int64_t first = std::max<int64_t>(0, top * g.y.stride - g.y.pad),
                      last = std::min(s.height, (top + rows) * g.y.stride - g.y.pad);
        prefetch<false>(plane + (s.height + first) * s.width, s.channels * s.height * s.width, live,
                        (last - first) * s.width);
      }
      for (int64_t v = top; v < top + rows; ++v) {
        T* p = packed_x + (v - top) * b.x_row + c * g.phases * b.t.row_lanes;
        for (int64_t fy = 0; fy < g.y.phases(); ++fy) {
          for (int64_t fx = 0; fx < g.x.phases(); ++fx, p += b.t.row_lanes) {
            if (!g.y.is_inside(v, fy)) {
              std::memset(p, 0, static_cast<size_t>(b.t.row_lanes) * sizeof(T));
            } else {
              pack_row(k, plane + g.y.real(v, fy) * s.width, s.channels * s.height * s.width, live, b.t.images,
                       b.maps[static_cast<size_t>(fx)], p, b.t.row_lanes, temporary);
            }
          }
        }
      }
    }
  }

  void compute(int64_t row_in_band) {
    const Geometry& g = b.g;
    const RowTiling& t = b.t;
    const auto& ops = k.template indexed<Offset>();
    const int64_t first = channels.begin * g.phases, count = (channels.end - channels.begin) * g.phases;
    for (int64_t strip = 0; strip < t.strips; ++strip) {
      const T* const dy = packed_dy + row_in_band * b.dy_row + strip * t.lanes;
      T* const out = packed_dx + first * t.row_lanes + strip * t.lanes;
      for (int64_t block = 0; block < b.blocks; ++block) {
        const int32_t* const begin = sorted.pointers + block * g.virtual_channels + first;
        if (dw != nullptr) {
          (dx != nullptr ? ops.backward : ops.sddmm)[t.tile](
              {packed_x + row_in_band * b.x_row + first * t.row_lanes + strip * t.lanes, t.row_lanes, dy, sorted.offset,
               b.unit, sorted.values, begin, begin + 1, count, block > 0, out, t.row_lanes, dw});
        } else {
          ops.spmm[t.tile]({dy, sorted.offset, b.unit, sorted.values, begin, begin + 1, count, nullptr, block > 0, out,
                            t.row_lanes});
        }
      }
    }
  }

  void unpack_dx(int64_t v) {
    const Geometry& g = b.g;
    for (int64_t fy = 0; fy < g.y.phases(); ++fy) {
      if (!g.y.is_inside(v, fy)) continue;
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        if (c + 1 < channels.end) {
          prefetch<true>(dx + ((image * s.channels + c + 1) * s.height + g.y.real(v, fy)) * s.width,
                         s.channels * s.height * s.width, live, s.width);
        }
        unpack_row(k, packed_dx + (c * g.phases + fy * g.x.phases()) * b.t.row_lanes, b.t.row_lanes, b.maps.data(),
                   g.x.phases(), live, b.t.images,
                   dx + ((image * s.channels + c) * s.height + g.y.real(v, fy)) * s.width,
                   s.channels * s.height * s.width, s.width, temporary);
      }
    }
  }
};

template <class T, class Index, class Offset>
void run(const ConvSizes& s, const Backward& b, const Kernels<T>& k, const T* grad, const T* x, const T* values, T* dx,
         T* dvalues, T* dbias, const int32_t* crow, const Index* col, int threads) {
  const Geometry& g = b.g;
  const int64_t nnz = crow[s.out_channels], buckets = b.blocks * g.virtual_channels;
  const int64_t first_row = g.y.any.begin, height = g.x.any.end == g.x.any.begin ? 0 : g.y.any.end - g.y.any.begin;
  const bool dw = dvalues != nullptr;
  const std::vector<Column> columns = columns_of(s, b);
  const std::vector<char> read = rows_read(s, g);
  const int64_t dy_elements = (b.band + g.y.max_shift) * b.dy_row, x_elements = dw ? b.band * b.x_row : 0;
  const int64_t temporary_elements = s.width * b.t.images;

  Plan plan;
  const size_t offset_at = plan.add<Offset>(nnz);
  const size_t values_at = plan.add<T>(dx != nullptr ? nnz : 0);
  const size_t source_at = plan.add<int32_t>(nnz);
  const size_t pointers_at = plan.add<int32_t>(buckets + 1);
  const size_t counts_at = plan.add<int32_t>(buckets * threads);
  const size_t dw_at = plan.add<T>(dw ? nnz : 0, threads);
  const size_t dy_at = plan.add<T>(dy_elements, threads);
  const size_t x_at = plan.add<T>(x_elements, threads);
  const size_t dx_at = plan.add<T>(b.x_row, threads);
  const size_t temporary_at = plan.add<T>(temporary_elements, threads);
  const Scratch scratch(plan);
  const Sorted<T, Offset> sorted{scratch.at<Offset>(offset_at), dx != nullptr ? scratch.at<T>(values_at) : nullptr,
                                 scratch.at<int32_t>(source_at), scratch.at<int32_t>(pointers_at),
                                 scratch.at<int32_t>(counts_at)};

  const bool gradients = dw || dx != nullptr, serial = nnz <= kSerialNonZeros;
  if (gradients && serial) sort(s, b, columns, crow, col, values, sorted, 0, 1);
  parallel(threads, [&](int thread, int team) {
    if (dbias != nullptr) bias_gradient(s, k, grad, dbias, thread, team);
    if (!gradients) return;
    if (dx != nullptr) clear_unread_rows(s, read, dx, thread, team);
    if (!serial) sort(s, b, columns, crow, col, values, sorted, thread, team);

    Grid grid = split_team(team, b.t.blocks * height);
    if (b.blocks > 1) grid = {team, 1};  // with blocks the pointers no longer say where to cut the channels
    const int row_part = thread / grid.channels, channel_part = thread % grid.channels;
    const auto channel_at = [&](int part) {
      const int64_t weight = nnz + kChannelCost * g.virtual_channels;
      return row_at(sorted.pointers, g.virtual_channels, kChannelCost, weight * part / grid.channels, g.phases) /
             g.phases;
    };
    const Range channels =
        grid.channels == 1 ? Range{0, s.channels} : Range{channel_at(channel_part), channel_at(channel_part + 1)};
    const Range non_zeros = grid.channels == 1 ? Range{0, nnz}
                                               : Range{sorted.pointers[channels.begin * g.phases],
                                                       sorted.pointers[channels.end * g.phases]};
    T* const my_dw = dw ? scratch.at<T>(dw_at, nnz, row_part) : nullptr;
    if (dw) std::memset(my_dw + non_zeros.begin, 0, static_cast<size_t>(non_zeros.end - non_zeros.begin) * sizeof(T));

    Worker<T, Offset> work{s,
                           b,
                           k,
                           grad,
                           x,
                           dx,
                           sorted,
                           my_dw,
                           channels,
                           scratch.at<T>(dy_at, dy_elements, thread),
                           scratch.at<T>(x_at, x_elements, thread),
                           scratch.at<T>(dx_at, b.x_row, thread),
                           scratch.at<T>(temporary_at, temporary_elements, thread),
                           0,
                           0};
    const Range mine = share(b.t.blocks * height, row_part, grid.rows);
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t top = first_row + i % height, rows = std::min({b.band, first_row + height - top, mine.end - i});
      work.image = i / height * b.t.images;
      work.live = std::min(b.t.images, s.n - work.image);
      // dy rows [top - max_shift, top + rows); the first max_shift of them are the last of the band before, if that was
      // full.
      int64_t kept = 0;
      if (i > mine.begin && top > first_row) {
        kept = g.y.max_shift;
        std::memmove(work.packed_dy, work.packed_dy + b.band * b.dy_row,
                     static_cast<size_t>(kept * b.dy_row) * sizeof(T));
      }
      work.pack_dy(top - g.y.max_shift + kept, top + rows, work.packed_dy + kept * b.dy_row);
      if (dw) work.pack_x(top, rows);
      for (int64_t row = 0; row < rows; ++row) {
        work.compute(row);
        if (dx != nullptr) work.unpack_dx(top + row);
      }
      i += rows;
    }
    if (!dw) return;
    barrier(team);
    const Range sums = share(nnz, thread, team);
    for (int64_t i = sums.begin; i < sums.end; ++i) {
      T total = scratch.at<T>(dw_at)[i];
      for (int part = 1; part < grid.rows; ++part) total += scratch.at<T>(dw_at, nnz, part)[i];
      dvalues[sorted.source[i]] = total;
    }
  });
}

}  // namespace

template <class T, class Index>
void csr_conv2d_backward(const ConvSizes& sizes, const T* grad, const T* x, const T* values, T* dx, T* dvalues,
                         T* dbias, const int32_t* crow, const Index* col, int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t widest = dvalues != nullptr ? k.backward_tile : k.spmm_tile;
  const ConvSizes s = join_rows(sizes, k.lanes, widest);
  const int64_t nnz = crow[s.out_channels];
  if (s.n == 0 || s.out_channels == 0 || s.channels == 0 || s.out_h == 0 || s.out_w == 0) {
    if (dx != nullptr) std::memset(dx, 0, static_cast<size_t>(s.n * s.channels * s.height * s.width) * sizeof(T));
    if (dvalues != nullptr) std::memset(dvalues, 0, static_cast<size_t>(nnz) * sizeof(T));
    if (dbias != nullptr && s.channels > 0) std::memset(dbias, 0, static_cast<size_t>(s.out_channels) * sizeof(T));
    if (s.channels > 0 || dbias == nullptr) return;
  }
  const Backward b(s, nnz, k.lanes, widest, sizeof(T));
  const double work = static_cast<double>(nnz + kChannelCost * b.g.virtual_channels) *
                      static_cast<double>(b.t.blocks * b.t.row_lanes * (b.g.y.any.end - b.g.y.any.begin));
  threads = useful_threads(threads, 2 * work);
  const int64_t span = (b.g.y.max_shift + 1) * b.dy_row / b.unit;
  if (span <= 65536)
    run<T, Index, uint16_t>(s, b, k, grad, x, values, dx, dvalues, dbias, crow, col, threads);
  else
    run<T, Index, int32_t>(s, b, k, grad, x, values, dx, dvalues, dbias, crow, col, threads);
}

#define LTH_INSTANTIATE(T, Index)                                                                         \
  template void csr_conv2d_backward<T, Index>(const ConvSizes&, const T*, const T*, const T*, T*, T*, T*, \
                                              const int32_t*, const Index*, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
