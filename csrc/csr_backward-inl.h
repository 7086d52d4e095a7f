// Both gradients of one strip in one pass over dy, column by column of the weight (non-zeros in column order):
//     dx[c] = sum over the non-zeros k of column c of values[k] * dy[offset[k]]
//     dw[k] += <x[c], dy[offset[k]]>
// The strips x[c] and dx[c] stay in registers while each strip of dy that is loaded feeds both. Nothing is scattered:
// dw is written in order, four horizontal sums at a time. WantDx = false leaves out the first line (csr_sddmm).

template <class T, int Tile, class Index, bool WantDx>
void csr_backward(const BackwardArgs<T, Index>& a) {
  using V = Vec<T>;
  using reg = typename V::reg;
  const T* const dy = a.dy;
  const Index* const offset = a.offset;
  const T* const values = a.values;
  const int64_t unit = a.unit;
  T* const dw = a.dw;
  // Strips that are used where a tensor has them lie far apart: no hardware prefetcher follows.
  const bool far = a.x_pitch * static_cast<int64_t>(sizeof(T)) >= 2048;
  for (int64_t c = 0; c < a.cols; ++c) {
    int64_t k = a.begin[c];
    const int64_t end = a.end[c];
    const T* const xc = a.x + c * a.x_pitch;
    T* const dxc = WantDx ? a.dx + c * a.dx_pitch : nullptr;
    if (far) {
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        __builtin_prefetch(xc + 2 * a.x_pitch + i * V::kLanes);
        if (WantDx) __builtin_prefetch(dxc + 2 * a.dx_pitch + i * V::kLanes, 1);
      }
    }
    reg x[Tile], dx[Tile];
#pragma GCC unroll 8
    for (int i = 0; i < Tile; ++i) {
      const bool part = i == Tile - 1 && a.tail != 0;
      x[i] = part ? V::load_part(xc + i * V::kLanes, a.tail) : V::load(xc + i * V::kLanes);
      dx[i] = V::zero();
      if (WantDx && a.accumulate)
        dx[i] = part ? V::load_part(dxc + i * V::kLanes, a.tail) : V::load(dxc + i * V::kLanes);
    }
    for (; k + 4 <= end; k += 4) {
      reg p[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const T* const g = dy + static_cast<int64_t>(offset[k + j]) * unit;
        const reg v = WantDx ? V::set1(values[k + j]) : V::zero();
        p[j] = V::zero();
#pragma GCC unroll 8
        for (int i = 0; i < Tile; ++i) {
          const reg gi = V::keep(V::load(g + i * V::kLanes));
          if (WantDx) dx[i] = V::fma(v, gi, dx[i]);
          p[j] = V::fma(gi, x[i], p[j]);
        }
      }
      V::add_sums(dw + k, p);
    }
    if (k < end) {  // up to three, with the sums of four: a loop over them would wait for each sum
      const int rest = static_cast<int>(end - k);
      reg p[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        p[j] = V::zero();
        if (j >= rest) continue;
        const T* const g = dy + static_cast<int64_t>(offset[k + j]) * unit;
        const reg v = WantDx ? V::set1(values[k + j]) : V::zero();
#pragma GCC unroll 8
        for (int i = 0; i < Tile; ++i) {
          const reg gi = V::keep(V::load(g + i * V::kLanes));
          if (WantDx) dx[i] = V::fma(v, gi, dx[i]);
          p[j] = V::fma(gi, x[i], p[j]);
        }
      }
      V::add_sums(dw + k, p, rest);
    }
    if (WantDx) {
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        if (i == Tile - 1 && a.tail != 0)
          V::store_part(dxc + i * V::kLanes, dx[i], a.tail);
        else
          V::store(dxc + i * V::kLanes, dx[i]);
      }
    }
  }
}
