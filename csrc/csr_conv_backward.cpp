// Gradients of conv2d(x, W) + bias. Threads share the (image block, input row) pairs; see csr_conv.h for the packing.
//
// Non-zeros are first sorted by the virtual input channel they read (a counting sort, on all threads). Then a thread packs a band of
// rows of x and the rows of dy, with a border of zeros, that its taps reach; csr_backward holds the strips of x and dx of one
// channel in registers and meets each shifted strip of dy once. Each part of the rows adds up its own dW; the parts are summed,
// in a fixed order, at the end.
#include "conv_geometry.h"
#include "conv_rows.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kChannelCost = 4;        // of a virtual input channel, in non-zeros
constexpr int64_t kBandBytes = 512 << 10;
constexpr int64_t kBlockBytes = 32 << 10;  // of dy that one block of output channels may touch: most of an L1 cache
constexpr int64_t kBlockNonZeros = 8;      // fewer for each channel and block are not worth reloading x and dx
constexpr int64_t kSerialNonZeros = 1 << 16;  // up to here one thread sorts: quicker than waiting for each other three times

struct Backward {
  Geometry g;
  RowTiling t;
  int64_t dy_pitch;      // elements in a packed row of one output channel
  int64_t unit;          // of the offsets: one pixel of all images, or a whole row where no tap moves along it
  int64_t dy_row, x_row;  // elements in a row of all output channels, of all virtual input channels
  int64_t band;          // virtual input rows
  int64_t block_channels, blocks;  // output channels of a group that are processed together
  RowMap dy_map;
  std::vector<RowMap> maps;  // by x phase

  Backward(const ConvSizes& s, int64_t nnz, int64_t vector_lanes, int64_t widest, int64_t bytes) : g(s) {
    const Range u = g.x.any;
    const bool shifts = g.x.max_shift > 0;
    t = tile_rows(s.n, u.end - u.begin, shifts, vector_lanes, widest);
    const int64_t grain = shifts ? t.images : round_up(t.images, vector_lanes);
    dy_pitch = round_up(g.x.max_shift * t.images + t.row_lanes, grain);
    if (dy_pitch * bytes % 512 == 0) dy_pitch += grain;  // power-of-two pitches would put all channels into few cache sets
    unit = shifts ? t.images : dy_pitch;
    dy_row = s.out_channels * dy_pitch;
    x_row = g.virtual_channels * t.row_lanes;
    band = (kBandBytes / bytes - g.y.max_shift * dy_row) / std::max<int64_t>(1, dy_row + x_row);
    band = std::min(std::max(band, std::max<int64_t>(1, g.y.max_shift)), std::max<int64_t>(1, g.y.any.end - g.y.any.begin));

    const int64_t first = std::max<int64_t>(0, u.begin - g.x.max_shift);  // dy columns that no pixel of x meets are left out
    const int64_t lead = std::max<int64_t>(0, g.x.max_shift - u.begin);
    dy_map = {lead, first, 1, std::max<int64_t>(0, std::min(s.out_w, u.end) - first)};
    for (int64_t f = 0; f < g.x.phases(); ++f) {
      const Range r = g.x.inside[static_cast<size_t>(f)];
      const bool empty = r.begin == r.end;
      maps.push_back({empty ? 0 : r.begin - u.begin, empty ? 0 : g.x.real(r.begin, f), g.x.stride, r.end - r.begin});
    }

    const int64_t group_rows = s.out_channels / s.groups;
    const int64_t touched = (g.y.max_shift + 1) * (t.lanes + g.x.max_shift * t.images) * bytes;
    block_channels = std::max<int64_t>(1, kBlockBytes / touched);
    blocks = ceil_div(group_rows, block_channels);
    if (blocks > 1 && nnz < kBlockNonZeros * g.virtual_channels * blocks) blocks = 1;
    block_channels = std::max<int64_t>(1, ceil_div(group_rows, std::max<int64_t>(1, blocks)));
    blocks = std::max<int64_t>(1, ceil_div(group_rows, block_channels));
  }
};

// For each column of a group's weight: its virtual channel within the group, and its offset into dy for output channel 0.
struct Column {
  int32_t channel;
  int64_t offset;
};

std::vector<Column> columns_of(const ConvSizes& s, const Backward& b) {
  std::vector<Column> result;
  for (int64_t c = 0; c < s.channels / s.groups; ++c) {
    for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
        const int64_t up = b.g.y.max_shift - b.g.y.shift[static_cast<size_t>(ky)];
        const int64_t left = b.g.x.max_shift - b.g.x.shift[static_cast<size_t>(kx)];
        result.push_back({static_cast<int32_t>(c * b.g.phases + b.g.phase_of(ky, kx)), (up * b.dy_row + left * b.t.images) / b.unit});
      }
    }
  }
  return result;
}

// The non-zeros sorted by (block of output channels, virtual channel), and within those by output channel.
template <class T, class Offset>
struct Sorted {
  Offset* offset;     // into dy, in units
  T* values;          // null when dx is not wanted
  int32_t* source;    // position in CSR order
  int32_t* pointers;  // [blocks * virtual channels + 1]
  int32_t* counts;    // [threads][blocks * virtual channels]: scratch
};

// All threads of a team call this together; the result is complete when it returns.
template <class T, class Index, class Offset>
void sort(const ConvSizes& s, const Backward& b, const std::vector<Column>& columns, const int32_t* crow, const Index* col,
          const T* values, const Sorted<T, Offset>& to, int thread, int team) {
  const int64_t group_rows = s.out_channels / s.groups, group_channels = b.g.virtual_channels / s.groups;
  const int64_t buckets = b.blocks * b.g.virtual_channels;
  const int64_t weight = crow[s.out_channels] + s.out_channels;
  const Range rows{row_at(crow, s.out_channels, 1, weight * thread / team), row_at(crow, s.out_channels, 1, weight * (thread + 1) / team)};
  const auto first_bucket = [&](int64_t row) {
    return row % group_rows / b.block_channels * b.g.virtual_channels + row / group_rows * group_channels;
  };
  int32_t* const mine = to.counts + thread * buckets;
  std::memset(mine, 0, static_cast<size_t>(buckets) * sizeof(int32_t));
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    int32_t* const bucket = mine + first_bucket(r);
    for (int64_t k = crow[r]; k < crow[r + 1]; ++k) ++bucket[columns[static_cast<size_t>(col[k])].channel];
  }
  barrier(team);
  if (thread == 0) {
    int32_t position = 0;
    for (int64_t i = 0; i < buckets; ++i) {
      to.pointers[i] = position;
      for (int other = 0; other < team; ++other) {
        const int32_t count = to.counts[other * buckets + i];
        to.counts[other * buckets + i] = position;
        position += count;
      }
    }
    to.pointers[buckets] = position;
  }
  barrier(team);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    int32_t* const bucket = mine + first_bucket(r);
    for (int64_t k = crow[r]; k < crow[r + 1]; ++k) {
      const Column& column = columns[static_cast<size_t>(col[k])];
      const int32_t position = bucket[column.channel]++;
      to.offset[position] = static_cast<Offset>(column.offset + r * b.dy_pitch / b.unit);
      to.source[position] = static_cast<int32_t>(k);
      if (to.values != nullptr) to.values[position] = values[k];
    }
  }
  barrier(team);
}

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

// Zeros for the rows of dx that no output reads.
template <class T>
void clear_unread_rows(const ConvSizes& s, const Geometry& g, T* dx, int thread, int team) {
  std::vector<char> read(static_cast<size_t>(s.height), 0);
  for (int64_t f = 0; f < g.y.phases(); ++f) {
    const Range r = g.y.inside[static_cast<size_t>(f)];
    for (int64_t v = r.begin; v < r.end; ++v) read[static_cast<size_t>(g.y.real(v, f))] = g.x.any.end > g.x.any.begin;
  }
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
        prefetch<false>(plane + (s.out_h + first) * s.out_w, s.out_channels * s.out_h * s.out_w, live, (last - first) * s.out_w);
      }
      for (int64_t row = from; row < to; ++row) {
        T* const p = packed + (row - from) * b.dy_row + o * b.dy_pitch;
        if (row < 0 || row >= s.out_h) {
          std::memset(p, 0, static_cast<size_t>(b.dy_pitch) * sizeof(T));
        } else {
          pack_row(k, plane + row * s.out_w, s.out_channels * s.out_h * s.out_w, live, b.t.images, b.dy_map, p, b.dy_pitch, temporary);
        }
      }
    }
  }

  void pack_x(int64_t top, int64_t rows) {
    const Geometry& g = b.g;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      const T* const plane = x + (image * s.channels + c) * s.height * s.width;
      if (c + 1 < channels.end) {
        const int64_t first = std::max<int64_t>(0, top * g.y.stride - g.y.pad), last = std::min(s.height, (top + rows) * g.y.stride - g.y.pad);
        prefetch<false>(plane + (s.height + first) * s.width, s.channels * s.height * s.width, live, (last - first) * s.width);
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
              {packed_x + row_in_band * b.x_row + first * t.row_lanes + strip * t.lanes, t.row_lanes, dy, sorted.offset, b.unit,
               sorted.values, begin, begin + 1, count, block > 0, out, t.row_lanes, dw});
        } else {
          ops.spmm[t.tile]({dy, sorted.offset, b.unit, sorted.values, begin, begin + 1, count, nullptr, block > 0, out, t.row_lanes});
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
          prefetch<true>(dx + ((image * s.channels + c + 1) * s.height + g.y.real(v, fy)) * s.width, s.channels * s.height * s.width, live, s.width);
        }
        unpack_row(k, packed_dx + (c * g.phases + fy * g.x.phases()) * b.t.row_lanes, b.t.row_lanes, b.maps.data(), g.x.phases(), live,
                   b.t.images, dx + ((image * s.channels + c) * s.height + g.y.real(v, fy)) * s.width,
                   s.channels * s.height * s.width, s.width, temporary);
      }
    }
  }
};

template <class T, class Index, class Offset>
void run(const ConvSizes& s, const Backward& b, const Kernels<T>& k, const T* grad, const T* x, const T* values, T* dx, T* dvalues,
         T* dbias, const int32_t* crow, const Index* col, int threads) {
  const Geometry& g = b.g;
  const int64_t nnz = crow[s.out_channels], buckets = b.blocks * g.virtual_channels;
  const int64_t first_row = g.y.any.begin, height = g.x.any.end == g.x.any.begin ? 0 : g.y.any.end - g.y.any.begin;
  const bool dw = dvalues != nullptr;
  const std::vector<Column> columns = columns_of(s, b);
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
                                 scratch.at<int32_t>(source_at), scratch.at<int32_t>(pointers_at), scratch.at<int32_t>(counts_at)};

  const bool gradients = dw || dx != nullptr, serial = nnz <= kSerialNonZeros;
  if (gradients && serial) sort(s, b, columns, crow, col, values, sorted, 0, 1);
  parallel(threads, [&](int thread, int team) {
    if (dbias != nullptr) bias_gradient(s, k, grad, dbias, thread, team);
    if (!gradients) return;
    if (dx != nullptr) clear_unread_rows(s, g, dx, thread, team);
    if (!serial) sort(s, b, columns, crow, col, values, sorted, thread, team);

    Grid grid = split_team(team, b.t.blocks * height);
    if (b.blocks > 1) grid = {team, 1};  // with blocks the pointers no longer say where to cut the channels
    const int row_part = thread / grid.channels, channel_part = thread % grid.channels;
    const auto channel_at = [&](int part) {
      const int64_t weight = nnz + kChannelCost * g.virtual_channels;
      return row_at(sorted.pointers, g.virtual_channels, kChannelCost, weight * part / grid.channels, g.phases) / g.phases;
    };
    const Range channels = grid.channels == 1 ? Range{0, s.channels} : Range{channel_at(channel_part), channel_at(channel_part + 1)};
    const Range non_zeros = grid.channels == 1 ? Range{0, nnz}
                                               : Range{sorted.pointers[channels.begin * g.phases], sorted.pointers[channels.end * g.phases]};
    T* const my_dw = dw ? scratch.at<T>(dw_at, nnz, row_part) : nullptr;
    if (dw) std::memset(my_dw + non_zeros.begin, 0, static_cast<size_t>(non_zeros.end - non_zeros.begin) * sizeof(T));

    Worker<T, Offset> work{s, b, k, grad, x, dx, sorted, my_dw, channels, scratch.at<T>(dy_at, dy_elements, thread),
                           scratch.at<T>(x_at, x_elements, thread), scratch.at<T>(dx_at, b.x_row, thread),
                           scratch.at<T>(temporary_at, temporary_elements, thread), 0, 0};
    const Range mine = share(b.t.blocks * height, row_part, grid.rows);
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t top = first_row + i % height, rows = std::min({b.band, first_row + height - top, mine.end - i});
      work.image = i / height * b.t.images;
      work.live = std::min(b.t.images, s.n - work.image);
      // dy rows [top - max_shift, top + rows); the first max_shift of them are the last of the band before, if that was full.
      int64_t kept = 0;
      if (i > mine.begin && top > first_row) {
        kept = g.y.max_shift;
        std::memmove(work.packed_dy, work.packed_dy + b.band * b.dy_row, static_cast<size_t>(kept * b.dy_row) * sizeof(T));
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
void csr_conv2d_backward(const ConvSizes& sizes, const T* grad, const T* x, const T* values, T* dx, T* dvalues, T* dbias,
                         const int32_t* crow, const Index* col, int threads) {
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
  if (span <= 65536) run<T, Index, uint16_t>(s, b, k, grad, x, values, dx, dvalues, dbias, crow, col, threads);
  else run<T, Index, int32_t>(s, b, k, grad, x, values, dx, dvalues, dbias, crow, col, threads);
}

#define LTH_INSTANTIATE(T, Index)                                                                                             \
  template void csr_conv2d_backward<T, Index>(const ConvSizes&, const T*, const T*, const T*, T*, T*, T*, const int32_t*,      \
                                              const Index*, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
