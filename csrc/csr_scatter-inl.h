// Both gradients of one strip in one pass over the weight in its own order, row by row:
//     dx[col[k]] += values[k] * dy[r],  dw[k] = <dy[r], x[col[k]]>
// csr_backward keeps dx in registers and needs the weight in the order of columns; here each non-zero loads and stores
// a strip of dx, but values, col and dw are single streams. That wins where the weight is large for the batch.

template <class T, int Tile, bool WantDx, bool WantDw, class Index>
void csr_scatter_rows(const ScatterArgs<T, Index>& a) {
  using V = Vec<T>;
  using reg = typename V::reg;
  constexpr int64_t kPitch = Tile * V::kLanes;
  const T* const x = a.x;
  const Index* const col = a.col;
  const T* const values = a.values;
  T* const dx = a.dx;
  T* const dw = a.dw;
  for (int64_t r = 0; r < a.rows; ++r) {
    int64_t k = a.begin[r];
    const int64_t end = a.end[r];
    reg g[Tile];
#pragma GCC unroll 8
    for (int i = 0; i < Tile; ++i) g[i] = V::load(a.dy + r * kPitch + i * V::kLanes);
    const auto product = [&](int64_t at) {
      const int64_t c = static_cast<int64_t>(col[at]) * kPitch;
      const reg v = WantDx ? V::set1(values[at]) : V::zero();
      reg p = V::zero();
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        if (WantDw) p = V::fma(g[i], V::load(x + c + i * V::kLanes), p);
        if (WantDx) {
          T* const d = dx + c + i * V::kLanes;
          V::store(d, V::fma(v, g[i], V::load(d)));
        }
      }
      return p;
    };
    for (; k + 4 <= end; k += 4) {
      reg p[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) p[j] = product(k + j);
      if (WantDw) {
        if (!a.accumulate) {
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) dw[k + j] = T(0);
        }
        V::add_sums(dw + k, p);
      }
    }
    for (; k < end; ++k) {
      const reg p = product(k);
      if (WantDw) dw[k] = a.accumulate ? dw[k] + V::sum(p) : V::sum(p);
    }
  }
}

template <class T, int Tile, class Index>
void csr_scatter(const ScatterArgs<T, Index>& a) {
  if (a.dx == nullptr) {
    csr_scatter_rows<T, Tile, false, true>(a);
  } else if (a.dw == nullptr) {
    csr_scatter_rows<T, Tile, true, false>(a);
  } else {
    csr_scatter_rows<T, Tile, true, true>(a);
  }
}
