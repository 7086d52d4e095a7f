// See conv_geometry.h. Nothing here is called more than once for a call of a convolution.
#include "conv_geometry.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace lth {
namespace {

constexpr int64_t kRowBytes = 768 << 10;  // what one row of pixels reads again and again: most of an L2 cache
constexpr int64_t kJoinedBytes = 768 << 10;  // of packed input and output, so that they stay in an L2 cache

// Cycles that it takes to move a register of activations into or out of strips, memory included: rows of one image
// sideways, every other pixel of them or fewer, copied as they are; images of a feature-major tensor collected, and for
// each end of a piece within a cache line; images transposed.
constexpr double kShiftCost = 5, kEvenCost = 8, kGatherCost = 32, kCopyCost = 5, kCollectCost = 8, kEndCost = 12,
                 kTransposeCost = 16;

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

bool pointwise(const ConvSizes& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0;
}

void expect(bool holds, const char* name, const std::string& what, int64_t got) {
  if (!holds) throw std::invalid_argument(std::string(name) + ": expected " + what + ", got " + std::to_string(got));
}

void check_axis(const char* out_name, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                int64_t dilation) {
  const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1;
  const int64_t right = span < 0 ? 0 : span / stride + 1;
  expect(out == right, out_name, std::to_string(right), out);
}

}  // namespace

void check(const ConvSizes& s) {
  expect(s.n >= 0, "n", "at least 0", s.n);
  expect(s.height >= 0, "height", "at least 0", s.height);
  expect(s.width >= 0, "width", "at least 0", s.width);
  expect(s.groups >= 1, "groups", "at least 1", s.groups);
  expect(s.channels >= 0 && s.channels % s.groups == 0, "channels", "a multiple of groups", s.channels);
  expect(s.out_channels >= 0 && s.out_channels % s.groups == 0, "out_channels", "a multiple of groups", s.out_channels);
  const struct {
    const char* name;
    int64_t value, least;
  } positive[] = {{"kernel_h", s.kernel_h, 1},     {"kernel_w", s.kernel_w, 1},
                  {"stride_h", s.stride_h, 1},     {"stride_w", s.stride_w, 1},
                  {"dilation_h", s.dilation_h, 1}, {"dilation_w", s.dilation_w, 1},
                  {"pad_h", s.pad_h, 0},           {"pad_w", s.pad_w, 0}};
  for (const auto& p : positive) expect(p.value >= p.least, p.name, "at least " + std::to_string(p.least), p.value);
  check_axis("out_h", s.height, s.out_h, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h);
  check_axis("out_w", s.width, s.out_w, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w);
}

Axis::Axis(int64_t in_, int64_t out_, int64_t kernel_, int64_t stride_, int64_t pad_, int64_t dilation,
           bool apart)
    : in(in_), out(out_), kernel(kernel_), stride(stride_), pad(pad_) {
  std::vector<Range> shifts;  // by phase
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t q = apart ? 0 : k * dilation / stride, p = k * dilation - q * stride;
    size_t f = static_cast<size_t>(std::find(residue_.begin(), residue_.end(), p) - residue_.begin());
    if (f == residue_.size()) {
      residue_.push_back(p);
      shifts.push_back({q, q});
    }
    shifts[f].end = q;
    shift.push_back(q);
    phase.push_back(static_cast<int64_t>(f));
    max_shift = std::max(max_shift, q);
  }
  for (size_t f = 0; f < residue_.size(); ++f) {
    const int64_t first = -floor_div(residue_[f] - pad, stride);  // smallest v whose real coordinate is not negative
    const int64_t last = floor_div(in - 1 + pad - residue_[f], stride);
    Range r{std::max(first, shifts[f].begin), std::min(last, out - 1 + shifts[f].end) + 1};
    if (r.end <= r.begin) r = {0, 0};
    inside.push_back(r);
    if (r.end == r.begin) continue;
    any = any.end == any.begin ? r : Range{std::min(any.begin, r.begin), std::max(any.end, r.end)};
  }
}

namespace {

// What moving a register of one channel costs, in multiply-adds of registers; dy is packed, x and dx may stay in place.
constexpr double kInPlace = 14, kCopied = 15, kTransposedDy = 16, kTransposedX = 27;
constexpr double kCollectedDy = 44, kCollectedX = 75;  // some of the images of a pixel
constexpr double kPlane = 6, kPlaneCopy = 2.8;
constexpr double kRun = 12, kPlaneRun = 54;  // for each run of registers besides

RowTiling tile_of(int64_t n, int64_t images, int64_t positions, int64_t vector_lanes, int64_t widest_tile) {
  RowTiling t;
  t.images = images;
  t.blocks = ceil_div(n, images);
  const int64_t vectors = std::max<int64_t>(1, ceil_div(positions * images, vector_lanes));
  t.strips = ceil_div(vectors, widest_tile);
  t.tile = ceil_div(vectors, t.strips);
  t.lanes = t.tile * vector_lanes;
  t.row_lanes = t.strips * t.lanes;
  return t;
}

// Computing with one strip. A non-zero costs its registers and some more for the offset and the value; loads that
// straddle two cache lines cost a little more.
double cost_of(const RowTiling& t, double uses, double aligned) {
  return (static_cast<double>(t.tile) * (1.06 - 0.06 * aligned) + 0.75) * (uses + 4);
}

}  // namespace

RowTiling tile_planes(const RowShape& s, int64_t copies, int64_t vector_lanes, int64_t widest_tile) {
  RowTiling t = tile_of(s.n, 1, s.positions, vector_lanes, widest_tile);
  const double computing = cost_of(t, s.uses, s.positions % vector_lanes == 0 ? 1 : 0);
  const double moving = (kPlane + kPlaneCopy * static_cast<double>(copies)) * s.outputs + kInPlace;
  t.cost = static_cast<double>(t.blocks) *
           (static_cast<double>(t.strips) * (computing + static_cast<double>(t.tile) * moving) + kPlaneRun * s.outputs);
  return t;
}

RowTiling tile_rows(const RowShape& s, int64_t vector_lanes, int64_t widest_tile) {
  RowTiling best{};
  const auto consider = [&](int64_t images) {
    RowTiling t = tile_of(s.n, images, s.positions, vector_lanes, widest_tile);
    const double aligned = static_cast<double>(std::gcd(images, vector_lanes)) / static_cast<double>(vector_lanes);
    // What comes from beyond an L2 cache costs more.
    const double spilt = images * (s.positions + s.shift) * s.bytes > kRowBytes ? 1.12 : 1.0;
    const double computing = cost_of(t, s.uses, s.shift > 0 ? aligned : 1) * spilt;
    const bool in_place = s.feature_major ? images == s.n : images == 1;
    const double moving = in_place ? kCopied * s.outputs + kInPlace
                          : s.feature_major ? kCollectedDy * s.outputs + kCollectedX
                                            : kTransposedDy * s.outputs + kTransposedX;
    t.cost = static_cast<double>(t.blocks * t.strips) *
             (computing + static_cast<double>(t.tile) * moving + kRun * s.outputs);
    if (best.images == 0 || t.cost < best.cost) best = t;
  };
  for (int64_t blocks = 1, last = 0; blocks <= s.n; ++blocks) {
    const int64_t even = ceil_div(s.n, blocks);
    if (even == last) continue;
    last = even;
    if (even > 8 * vector_lanes) continue;
    for (const int64_t images : {even, round_up(even, vector_lanes)}) {
      // Of a feature-major tensor, fewer images than a vector has lanes are tedious to collect.
      if (!s.feature_major || images >= s.n || images % vector_lanes == 0) consider(images);
    }
  }
  return best;
}

PlaneTiling tile_plane(const PlaneShape& s, int64_t vector_lanes, int64_t widest_tile) {
  PlaneTiling best{};
  const int64_t columns = s.width + s.shift_w;
  const auto consider = [&](int64_t images, int64_t joined) {
    const int64_t rows = joined + s.shift_h, row_bytes = images * columns * s.bytes;
    if (joined > 1 && row_bytes * (rows * s.channels + joined * s.out_channels) > kJoinedBytes) return;
    PlaneTiling t;
    t.images = images;
    t.blocks = ceil_div(s.n, images);
    t.joined = joined;
    const int64_t vectors = ceil_div(((joined - 1) * columns + s.width) * images, vector_lanes);
    t.strips = ceil_div(vectors, widest_tile);
    t.tile = ceil_div(vectors, t.strips);
    t.lanes = t.tile * vector_lanes;
    t.run_lanes = t.strips * t.lanes;
    // An entry costs its registers and some 2 more for the offset and the value. Shifts by less than a vector make
    // most loads straddle two cache lines.
    const int64_t shift = std::gcd(s.shift_w > 0 ? images : 0, joined > 1 && s.shift_h > 0 ? columns * images : 0);
    const double aligned = static_cast<double>(std::gcd(shift, vector_lanes)) / static_cast<double>(vector_lanes);
    const double straddle = 1.6 - 0.6 * aligned;
    // What rows of pixels need should stay in an L2 cache; at the least what one strip does, of which the next one
    // reads most again.
    const int64_t in_strip = (t.lanes + s.shift_w * images) * (1 + s.shift_h) * s.channels;
    const bool row_spilt = joined == 1 && row_bytes * ((1 + s.shift_h) * s.channels + s.out_channels) > kJoinedBytes;
    const bool strip_spilt = row_spilt && (in_strip + t.lanes * s.out_channels) * s.bytes > kJoinedBytes;
    const double spilt = strip_spilt ? 1.4 : row_spilt ? 1.12 : 1.0;
    const double registers = static_cast<double>(vectors), strips = static_cast<double>(t.strips);
    const double run = s.entries * (registers * straddle + 2 * strips) * spilt +
                       2 * registers * static_cast<double>(s.out_channels);
    const bool one = images == 1 && !s.feature_major;  // rows as they lie in memory
    const int64_t in_rows = s.height + s.shift_h;
    const int64_t in =
        one ? in_rows * ceil_div(columns, vector_lanes) : ceil_div(in_rows * columns * images, vector_lanes);
    const int64_t out = ceil_div(s.height * s.width * images, vector_lanes);
    // Images that are collected from among those of a pixel come in pieces, which share cache lines at their ends.
    const double ends = s.n % vector_lanes != 0 ? static_cast<double>(vector_lanes) / static_cast<double>(images) : 0;
    const double major = images == s.n ? kCopyCost : kCollectCost + kEndCost * ends;
    const double pack = one               ? (s.step == 1 ? kShiftCost : s.step == 2 ? kEvenCost : kGatherCost)
                        : s.feature_major ? major
                                          : kTransposeCost * (images < vector_lanes ? 1.5 : 1.0);
    const double unpack = one ? kCopyCost : s.feature_major ? major : kTransposeCost;
    const double moves =
        pack * static_cast<double>(s.channels * in) + unpack * static_cast<double>(s.out_channels * out);
    const int64_t runs = ceil_div(s.height, joined), items = t.blocks * runs;
    const double idle = static_cast<double>(round_up(items, s.threads)) / static_cast<double>(items);
    t.cost = (run * static_cast<double>(items) + moves * static_cast<double>(t.blocks)) * std::min(idle, 1.25);
    if (best.images == 0 || t.cost < best.cost) best = t;
  };
  for (int64_t blocks = 1, last = 0; blocks <= s.n; ++blocks) {
    const int64_t even = ceil_div(s.n, blocks);
    if (even == last) continue;
    last = even;
    if (even > 4 * vector_lanes) continue;
    for (const int64_t images : {even, round_up(even, vector_lanes)}) {
      if (s.feature_major && images < s.n && images % vector_lanes != 0) continue;
      if (s.single && images > 1) continue;
      consider(images, 1);
      for (int64_t joined = s.height; joined > 1; joined = ceil_div(joined, 2)) consider(images, joined);
    }
  }
  return best;
}

ConvSizes pixels_as_images(const ConvSizes& s) {
  ConvSizes one = s;
  if (!s.feature_major || !pointwise(s)) return s;
  one.feature_major = false;
  one.n = 1;
  one.height = one.out_h = s.height * s.width;
  one.width = one.out_w = s.n;
  return one;
}

ConvSizes join_rows(const ConvSizes& s, int64_t bytes, double uses, bool feature_major, int64_t vector_lanes,
                    int64_t widest_tile) {
  if (!pointwise(s)) return s;
  ConvSizes best = s;
  const double outputs = static_cast<double>(s.out_channels) / static_cast<double>(std::max<int64_t>(1, s.channels));
  double best_cost = 0;
  for (int64_t joined = 1; joined <= s.height; ++joined) {
    if (s.height % joined != 0 || (joined > 1 && joined * s.width > 32 * vector_lanes)) continue;
    const RowTiling t =
        tile_rows({s.n, joined * s.width, 0, bytes, uses, outputs, feature_major}, vector_lanes, widest_tile);
    const double cost = t.cost * static_cast<double>(s.height / joined);
    if (joined > 1 && cost >= best_cost) continue;
    best_cost = cost;
    best.height = best.out_h = s.height / joined;
    best.width = best.out_w = s.width * joined;
  }
  return best;
}

Grid split_team(int team, int64_t rows) {
  Grid best{1, team};
  double best_time = 0;
  for (int parts = 1; parts <= team; ++parts) {
    if (team % parts != 0) continue;
    const int channels = team / parts;
    const double time = static_cast<double>(ceil_div(rows, parts)) / channels * (1.0 + 0.1 * (channels - 1));
    if (parts == 1 || time < best_time) {
      best = {parts, channels};
      best_time = time;
    }
  }
  return best;
}

}  // namespace lth
