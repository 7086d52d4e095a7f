// y = conv2d(x, W) + bias. Threads share the (image block, output row) pairs; see csr_conv.h for the packing.
//
// A thread walks its rows in bands: pack the input rows of a band (those shared with the band before are still there),
// then for each output row and strip run csr_spmm over all output channels, then transpose the finished row into y.
#include "conv_geometry.h"
#include "conv_rows.h"
#include "csr_conv.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kRowCost = 4;  // of an output channel, in non-zeros
constexpr int64_t kBandBytes = 512 << 10;
constexpr int64_t kBlockBytes = 32 << 10;     // of input that one block of the reduction may touch: most of an L1 cache
constexpr int64_t kBlockNonZeros = 8;         // fewer for each row and block are not worth reloading the accumulators
constexpr int64_t kSerialNonZeros = 1 << 16;  // up to here one thread places them: quicker than waiting for each other

struct Forward {
  Geometry g;
  RowTiling t;
  int64_t pitch;         // elements in a packed row of one virtual channel
  int64_t unit;          // of the offsets: one pixel of all images, or a whole row where no tap moves along it
  int64_t row_elements;  // of all virtual channels
  int64_t band;          // output rows
  int64_t block_cols;    // columns of the weight in one block of the reduction
  int64_t blocks;
  std::vector<RowMap> maps;  // by x phase

  Forward(const ConvSizes& s, int64_t nnz, int64_t vector_lanes, int64_t widest, int64_t bytes) : g(s) {
    const bool shifts = g.x.max_shift > 0;
    t = tile_rows({s.n, s.out_w, g.x.max_shift, 0, 10, false}, vector_lanes, widest);
    const int64_t grain = shifts ? t.images : round_up(t.images, vector_lanes);
    pitch = round_up((s.out_w + g.x.max_shift) * t.images, grain);
    if (pitch * bytes % 512 == 0) pitch += grain;  // power-of-two pitches would put all channels into few cache sets
    unit = shifts ? t.images : pitch;
    row_elements = g.virtual_channels * pitch;
    band = std::max(kBandBytes / std::max<int64_t>(1, row_elements * bytes) - g.y.max_shift,
                    std::max<int64_t>(1, 2 * g.y.max_shift));
    band = std::min(band, s.out_h);

    const int64_t group_channels = s.channels / s.groups, taps = s.kernel_h * s.kernel_w;
    const int64_t touched = (g.y.max_shift + 1) * (t.lanes + g.x.max_shift * t.images) * bytes * g.phases;
    int64_t channels = std::max<int64_t>(1, kBlockBytes / touched);
    blocks = ceil_div(group_channels, channels);
    if (blocks > 1 && nnz < kBlockNonZeros * s.out_channels * blocks) blocks = 1;
    channels = ceil_div(group_channels, std::max<int64_t>(1, blocks));
    blocks = std::max<int64_t>(1, ceil_div(group_channels, std::max<int64_t>(1, channels)));
    block_cols = std::max<int64_t>(1, channels * taps);

    for (int64_t f = 0; f < g.x.phases(); ++f) {
      const Range r = g.x.inside[static_cast<size_t>(f)];
      maps.push_back({r.begin, r.begin == r.end ? 0 : g.x.real(r.begin, f), g.x.stride, r.end - r.begin});
    }
  }

  // Offset of a non-zero from the strip of its output, in units: by column of a group's weight.
  std::vector<int64_t> offsets(const ConvSizes& s) const {
    std::vector<int64_t> result;
    for (int64_t c = 0; c < s.channels / s.groups; ++c) {
      for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
          const int64_t row =
              g.y.shift[static_cast<size_t>(ky)] * g.virtual_channels + c * g.phases + g.phase_of(ky, kx);
          result.push_back((row * pitch + g.x.shift[static_cast<size_t>(kx)] * t.images) / unit);
        }
      }
    }
    return result;
  }
};

// offset[k] for the rows [rows.begin, rows.end), and where each of their blocks begins: pointers[block * out_channels +
// row].
template <class Index, class Offset>
void place(const ConvSizes& s, const Forward& f, const std::vector<int64_t>& by_col, const int32_t* crow,
           const Index* col, Range rows, Offset* offset, int32_t* pointers) {
  const int64_t group_rows = s.out_channels / s.groups;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t base = r / group_rows * (s.channels / s.groups) * f.g.phases * f.pitch / f.unit;
    int64_t k = crow[r];
    for (int64_t block = 0; block < f.blocks; ++block) {
      pointers[block * s.out_channels + r] = static_cast<int32_t>(k);
      const int64_t stop = block + 1 == f.blocks ? INT64_MAX : (block + 1) * f.block_cols;
      for (; k < crow[r + 1] && col[k] < stop; ++k)
        offset[k] = static_cast<Offset>(base + by_col[static_cast<size_t>(col[k])]);
    }
    pointers[f.blocks * s.out_channels + r] = static_cast<int32_t>(k);
  }
}

template <class T, class Index, class Offset>
void run(const ConvSizes& s, const Forward& f, const Kernels<T>& k, const std::vector<int64_t>& by_col, const T* x,
         const T* values, const T* bias, T* y, const int32_t* crow, const Index* col, int threads) {
  const Geometry& g = f.g;
  const RowTiling& t = f.t;
  const int64_t nnz = crow[s.out_channels];
  const auto spmm = k.template indexed<Offset>().spmm[t.tile];
  const int64_t band_elements =
      (f.band + g.y.max_shift) * f.row_elements + t.row_lanes;  // strips may read past a row's end

  Plan plan;
  const size_t offset_at = plan.add<Offset>(nnz);
  const size_t pointers_at = plan.add<int32_t>((f.blocks + 1) * s.out_channels);
  const size_t in_at = plan.add<T>(band_elements, threads);
  const size_t out_at = plan.add<T>(s.out_channels * t.row_lanes, threads);
  const size_t temporary_at = plan.add<T>(s.width * t.images, threads);
  const Scratch scratch(plan);
  Offset* const offset = scratch.at<Offset>(offset_at);
  int32_t* const pointers = scratch.at<int32_t>(pointers_at);

  const bool serial = nnz <= kSerialNonZeros;
  if (serial) place(s, f, by_col, crow, col, {0, s.out_channels}, offset, pointers);
  parallel(threads, [&](int thread, int team) {
    T* const in = scratch.at<T>(in_at, band_elements, thread);
    T* const out = scratch.at<T>(out_at, s.out_channels * t.row_lanes, thread);
    T* const temporary = scratch.at<T>(temporary_at, s.width * t.images, thread);
    const int64_t weight = nnz + kRowCost * s.out_channels;
    const auto channel_at = [&](int part, int parts) {
      return row_at(crow, s.out_channels, kRowCost, weight * part / parts);
    };
    std::memset(in + (f.band + g.y.max_shift) * f.row_elements, 0, static_cast<size_t>(t.row_lanes) * sizeof(T));
    if (!serial) {
      place(s, f, by_col, crow, col, {channel_at(thread, team), channel_at(thread + 1, team)}, offset, pointers);
      barrier(team);
    }

    const Grid grid = split_team(team, t.blocks * s.out_h);
    const int part = thread % grid.channels;
    const Range channels{channel_at(part, grid.channels), channel_at(part + 1, grid.channels)};
    const Range mine = share(t.blocks * s.out_h, thread / grid.channels, grid.rows);
    int64_t packed_until = 0;  // virtual row up to which the band before has packed, of the same image block
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t block = i / s.out_h, top = i % s.out_h;
      const int64_t rows = std::min({f.band, s.out_h - top, mine.end - i});
      const int64_t image = block * t.images, live = std::min(t.images, s.n - image);
      const bool follows = i > mine.begin && top > 0;
      const int64_t kept =
          follows ? packed_until - top : 0;  // rows at the end of the last band that this one starts with
      if (kept > 0) {
        std::memmove(in, in + (f.band) * f.row_elements, static_cast<size_t>(kept * f.row_elements) * sizeof(T));
      }
      packed_until = top + rows + g.y.max_shift;
      for (int64_t c = 0; c < s.channels; ++c) {
        const T* const plane = x + (image * s.channels + c) * s.height * s.width;
        if (c + 1 < s.channels) {
          const int64_t from = std::max<int64_t>(0, (top + kept) * g.y.stride - g.y.pad);
          const int64_t to = std::min<int64_t>(s.height, packed_until * g.y.stride - g.y.pad);
          prefetch<false>(plane + s.height * s.width + from * s.width, s.channels * s.height * s.width, live,
                          (to - from) * s.width);
        }
        for (int64_t v = top + kept; v < packed_until; ++v) {
          for (int64_t fy = 0; fy < g.y.phases(); ++fy) {
            T* const to = in + (v - top) * f.row_elements + (c * g.phases + fy * g.x.phases()) * f.pitch;
            if (!g.y.is_inside(v, fy)) {
              std::memset(to, 0, static_cast<size_t>(g.x.phases() * f.pitch) * sizeof(T));
              continue;
            }
            for (int64_t fx = 0; fx < g.x.phases(); ++fx) {
              pack_row(k, plane + g.y.real(v, fy) * s.width, s.channels * s.height * s.width, live, t.images,
                       f.maps[static_cast<size_t>(fx)], to + fx * f.pitch, f.pitch, temporary);
            }
          }
        }
      }
      for (int64_t row = top; row < top + rows; ++row) {
        for (int64_t strip = 0; strip < t.strips; ++strip) {
          for (int64_t b = 0; b < f.blocks; ++b) {
            const int32_t* const begin = pointers + b * s.out_channels + channels.begin;
            spmm({in + (row - top) * f.row_elements + strip * t.lanes, offset, f.unit, values, begin,
                  begin + s.out_channels, channels.end - channels.begin,
                  bias == nullptr ? nullptr : bias + channels.begin, b > 0,
                  out + channels.begin * t.row_lanes + strip * t.lanes, t.row_lanes});
          }
        }
        for (int64_t o = channels.begin; o < channels.end; ++o) {
          if (o + 1 < channels.end) {
            prefetch<true>(y + ((image * s.out_channels + o + 1) * s.out_h + row) * s.out_w,
                           s.out_channels * s.out_h * s.out_w, live, s.out_w);
          }
          k.transpose(out + o * t.row_lanes, t.images, s.out_w, live,
                      y + ((image * s.out_channels + o) * s.out_h + row) * s.out_w, s.out_channels * s.out_h * s.out_w,
                      s.out_w);
        }
      }
      i += rows;
    }
  });
}

}  // namespace

template <class T, class Index>
void csr_conv2d_forward(const ConvSizes& sizes, const T* x, const T* values, const T* bias, T* y, const int32_t* crow,
                        const Index* col, int threads) {
  if (sizes.n == 0 || sizes.out_channels == 0 || sizes.out_h == 0 || sizes.out_w == 0) return;
  const Kernels<T>& k = kernels<T>();
  const ConvSizes s = join_rows(sizes, 0, 10, false, k.lanes, k.spmm_tile);
  const int64_t nnz = crow[s.out_channels];
  const Forward f(s, nnz, k.lanes, k.spmm_tile, sizeof(T));
  const double work =
      static_cast<double>(nnz + kRowCost * s.out_channels) * static_cast<double>(f.t.blocks * s.out_h * f.t.row_lanes);
  threads = useful_threads(threads, work);
  const std::vector<int64_t> by_col = f.offsets(s);
  const int64_t span = (f.g.y.max_shift + 1) * f.row_elements / f.unit;
  if (span <= 65536)
    run<T, Index, uint16_t>(s, f, k, by_col, x, values, bias, y, crow, col, threads);
  else
    run<T, Index, int32_t>(s, f, k, by_col, x, values, bias, y, crow, col, threads);
}

#define LTH_INSTANTIATE(T, Index)                                                                                \
  template void csr_conv2d_forward<T, Index>(const ConvSizes&, const T*, const T*, const T*, T*, const int32_t*, \
                                             const Index*, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)

}  // namespace lth
