// Both gradients of one strip in one pass over dy, column by column of the weight, where the non-zeros of a column come
// as entries of R adjacent rows:
//     dx[c] = sum over the entries k of column c and their rows i of values[k][i] * dy_i[offset[k]]
//     dw[k][i] += <x[c], dy_i[offset[k]]>
// As csr_backward, but an entry costs one index, its values lie side by side, and its four horizontal sums are those of
// one column. WantDx = false leaves out the first line (bsr_sddmm).

template <class T, int R, int Tile, class Index, bool WantDx>
void bsr_backward(const BsrBackwardArgs<T, Index>& a) {
  static_assert(R % 4 == 0, "sums are taken four at a time");
  using V = Vec<T>;
  using reg = typename V::reg;
  // With registers to spare the values of four rows stay in them, and the sums of dx and dw interleave.
  constexpr bool kRoomy = V::kRegisters >= 2 * Tile + 4 + 4 + 2;
  const int64_t unit = a.unit, pitch = a.dy_pitch;
  for (int64_t c = 0; c < a.cols; ++c) {
    const T* const xc = a.x + c * a.x_pitch;
    T* const dxc = WantDx ? a.dx + c * a.dx_pitch : nullptr;
    reg x[Tile], dx[Tile];
#pragma GCC unroll 8
    for (int t = 0; t < Tile; ++t) {
      const bool part = t == Tile - 1 && a.tail != 0;
      x[t] = part ? V::load_part(xc + t * V::kLanes, a.tail) : V::load(xc + t * V::kLanes);
      dx[t] = V::zero();
      if (WantDx && a.accumulate)
        dx[t] = part ? V::load_part(dxc + t * V::kLanes, a.tail) : V::load(dxc + t * V::kLanes);
    }
    const int64_t end = a.end[c];
    for (int64_t k = a.begin[c]; k < end; ++k) {
      const T* g = a.dy + static_cast<int64_t>(a.offset[k]) * unit;
#pragma GCC unroll 2
      for (int half = 0; half < R; half += 4, g += 4 * pitch) {
        reg p[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) p[i] = V::zero();
        if constexpr (kRoomy) {
          reg v[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) v[i] = WantDx ? V::set1(a.values[k * R + half + i]) : V::zero();
#pragma GCC unroll 8
          for (int t = 0; t < Tile; ++t) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
              const reg gi = V::keep(V::load(g + i * pitch + t * V::kLanes));
              if (WantDx) dx[t] = V::fma(v[i], gi, dx[t]);
              p[i] = V::fma(gi, x[t], p[i]);
            }
          }
        } else {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            const reg v = WantDx ? V::set1(a.values[k * R + half + i]) : V::zero();
#pragma GCC unroll 8
            for (int t = 0; t < Tile; ++t) {
              const reg gi = V::keep(V::load(g + i * pitch + t * V::kLanes));
              if (WantDx) dx[t] = V::fma(v, gi, dx[t]);
              p[i] = V::fma(gi, x[t], p[i]);
            }
          }
        }
        V::add_sums(a.dw + k * R + half, p);
      }
    }
    if (WantDx) {
#pragma GCC unroll 8
      for (int t = 0; t < Tile; ++t) {
        if (t == Tile - 1 && a.tail != 0)
          V::store_part(dxc + t * V::kLanes, dx[t], a.tail);
        else
          V::store(dxc + t * V::kLanes, dx[t]);
      }
    }
  }
}
