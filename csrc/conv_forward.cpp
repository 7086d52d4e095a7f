// See conv_forward.h: how a forward pass is cut up.
#include "conv_forward.h"

namespace lth {

Forward::Forward(const ConvSizes& s, int64_t rows, double entries, double least, int64_t lanes, int64_t widest,
                 int64_t bytes, int threads)
    : g(s) {
  const auto tiled = [&](const Geometry& by, bool single) {
    return tile_plane({s.n, s.out_w, s.out_h, by.x.max_shift, by.y.max_shift, by.virtual_channels, s.out_channels,
                       bytes, entries * static_cast<double>(rows), s.stride_w, s.feature_major, single, threads},
                      lanes, widest);
  };
  t = tiled(g, false);
  if (!s.feature_major) {  // rows of one image, packed once for every tap along them, so that no tap shifts lanes
    const Geometry apart(s, true);
    const PlaneTiling single = tiled(apart, true);
    if (single.cost < t.cost) {
      g = apart;
      t = single;
    }
  }
  const int64_t max_w = g.x.max_shift, max_h = g.y.max_shift;
  const int64_t grain = max_w > 0 ? t.images : std::lcm(t.images, lanes);
  const auto spread = [&](int64_t pitch) {  // power-of-two pitches would put all channels into few cache sets
    pitch = round_up(pitch, grain);
    return pitch * bytes % 512 == 0 ? pitch + round_up(lanes, grain) : pitch;
  };
  row_lanes = (s.out_w + max_w) * t.images;

  // Rows that are unpacked together fill cache lines of y.
  const int64_t line = std::max<int64_t>(1, 64 / bytes);
  group = t.joined > 1 ? t.joined : std::min(s.out_h, ceil_div(line, s.feature_major ? s.out_w * s.n : s.out_w));
  groups = ceil_div(s.out_h, group);
  const int64_t band_row = g.virtual_channels * row_lanes * bytes;
  band = std::max(kBandBytes / std::max<int64_t>(1, band_row) - max_h, 2 * max_h);
  band = std::min(std::max<int64_t>(1, band / group), groups) * group;

  if (t.joined > 1) {
    row_pitch = row_lanes;
    channel_pitch = spread((band + max_h) * row_pitch);
    in_elements = g.virtual_channels * channel_pitch;
  } else {
    channel_pitch = spread(row_lanes);
    row_pitch = g.virtual_channels * channel_pitch;
    in_elements = (band + max_h) * row_pitch;
  }
  unit = std::gcd(std::gcd(channel_pitch, row_pitch), max_w > 0 ? t.images : 0);
  in_elements += t.run_lanes + row_lanes;  // strips may read past a row's end

  out_row = t.joined > 1 ? row_lanes : t.run_lanes;
  out_pitch = t.joined > 1 ? t.run_lanes : group * t.run_lanes;
  if (out_pitch * bytes % 512 == 0) out_pitch += lanes;
  out_elements = rows * out_pitch;

  const int64_t apart = (max_h + 1) * (t.lanes + max_w * t.images);  // read of a virtual channel, rows lying apart
  const int64_t touched =
      (t.joined > 1 ? std::min(apart, t.lanes + max_h * row_pitch + max_w * t.images) : apart) * bytes * g.phases;
  const int64_t group_channels = std::max<int64_t>(1, s.channels / s.groups);
  blocks = ceil_div(group_channels, std::max<int64_t>(1, kBlockBytes / touched));
  blocks = std::max<int64_t>(1, std::min(blocks, static_cast<int64_t>(entries / least + 0.5)));
  block_channels = ceil_div(group_channels, blocks);
  blocks = ceil_div(group_channels, block_channels);

  for (int64_t f = 0; f < g.x.phases(); ++f) {
    const Range r = g.x.inside[static_cast<size_t>(f)];
    maps.push_back({r.begin, r.begin == r.end ? 0 : g.x.real(r.begin, f), g.x.stride, r.end - r.begin});
  }
}

}  // namespace lth
