// The geometry of a convolution once its strides are gone, one axis at a time.
//
// With stride s, tap k reads padded coordinate y = o*s + k*d. Write k*d = q*s + p: the tap reads element v = o + q of
// *phase* p, the sub-image of every s-th padded coordinate from p on. Each phase is a virtual channel on which the
// convolution has stride 1 and the tap has *shift* q. Phases that no tap uses do not exist here, and neither do pixels
// that no output reads.
#pragma once

#include <cstdint>
#include <vector>

#include "csr_conv.h"
#include "parallel.h"

namespace lth {

struct Axis {
  // `apart`: every tap is a phase of its own, without shift, even where the stride would let it share one.
  Axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool apart = false);

  int64_t in, out, kernel, stride, pad;
  int64_t max_shift = 0;
  std::vector<int64_t> shift, phase;  // by tap; phase is an index into `inside`
  std::vector<Range> inside;          // by phase: virtual coordinates that are real pixels and read by some output
  Range any{0, 0};                    // from the first to the last of them over all phases

  int64_t phases() const { return static_cast<int64_t>(inside.size()); }
  int64_t real(int64_t v, int64_t f) const { return v * stride + residue_[static_cast<size_t>(f)] - pad; }
  bool is_inside(int64_t v, int64_t f) const {
    const Range r = inside[static_cast<size_t>(f)];
    return v >= r.begin && v < r.end;
  }

 private:
  std::vector<int64_t> residue_;  // by phase
};

struct Geometry {
  explicit Geometry(const ConvSizes& sizes, bool columns_apart = false)
      : y(sizes.height, sizes.out_h, sizes.kernel_h, sizes.stride_h, sizes.pad_h, sizes.dilation_h),
        x(sizes.width, sizes.out_w, sizes.kernel_w, sizes.stride_w, sizes.pad_w, sizes.dilation_w,
          columns_apart),
        phases(y.phases() * x.phases()),
        virtual_channels(sizes.channels * phases) {}

  Axis y, x;
  int64_t phases;  // virtual channels for each channel, y phase major
  int64_t virtual_channels;

  int64_t phase_of(int64_t ky, int64_t kx) const {
    return y.phase[static_cast<size_t>(ky)] * x.phases() + x.phase[static_cast<size_t>(kx)];
  }
};

// How one row of pixels by images is cut into strips: `images` images share a vector, `strips` strips of `tile`
// registers cover `positions` pixels of each.
struct RowTiling {
  int64_t images, blocks, tile, strips, lanes, row_lanes;  // row_lanes = strips * lanes >= positions * images
  double cost;  // of a row of all images, in multiply-adds of registers
};

struct RowShape {
  int64_t n, positions;
  int64_t shift;       // how far taps move along the row
  int64_t bytes;       // what is read again and again, for each pixel of each image
  double uses;         // non-zeros for each channel
  double outputs;      // output channels for each input channel
  bool feature_major;  // the images of a pixel are adjacent in memory
};

RowTiling tile_rows(const RowShape& shape, int64_t vector_lanes, int64_t widest_tile);

// For dy packed to planes (conv_transposed.h) with so many copies of each; `positions` are those of several rows,
// `outputs` count rows that are packed again.
RowTiling tile_planes(const RowShape& shape, int64_t copies, int64_t vector_lanes, int64_t widest_tile);

// How the forward pass cuts the output of a block of images into strips. Rows of pixels that fill a strip stand alone
// (joined = 1, their strips start at a pixel of their own); shorter ones are joined: packed with their border one after
// the other, `joined` of them are one run of lanes, where a shift by a row is as constant an offset as one by a pixel,
// and what is computed for the border between them, if they have one, is thrown away.
struct PlaneTiling {
  int64_t images, blocks, joined, tile, strips, lanes, run_lanes;  // run_lanes = strips * lanes
  double cost;  // of all images, in cycles of a core
};

// `width` and `height` in output pixels, and how far taps reach beyond them; packed channels and output channels, of
// `bytes` each pixel; entries: multiplications of a strip by a non-zero that an output strip takes; step: from one
// column of a packed row to the next in the input.
struct PlaneShape {
  int64_t n, width, height, shift_w, shift_h, channels, out_channels, bytes;
  double entries;
  int64_t step;
  bool feature_major;  // all images of a pixel adjacent: some of them are collected by whole vectors only
  bool single;         // images one by one only
  int threads;
};

PlaneTiling tile_plane(const PlaneShape& shape, int64_t vector_lanes, int64_t widest_tile);

// To a 1x1 convolution without stride and padding a feature-major tensor is one contiguous image of n times as many
// pixels. Any other convolution is returned as it is.
ConvSizes pixels_as_images(const ConvSizes& sizes);

// A 1x1 convolution without stride and padding does not care where rows end: the same convolution over longer rows,
// which fill strips without the help of neighbouring images and so need no transposition. Any other convolution is
// returned as it is.
ConvSizes join_rows(const ConvSizes& sizes, int64_t bytes, double uses, bool feature_major, int64_t vector_lanes,
                    int64_t widest_tile);

// A team as a grid: `rows` parts of the (image block, pixel row) pairs times `channels` parts of the channels. Rows
// come first, since threads that share rows all pack the same input; channels only where there are too few rows to go
// round.
struct Grid {
  int rows, channels;
};

Grid split_team(int team, int64_t rows);

}  // namespace lth
