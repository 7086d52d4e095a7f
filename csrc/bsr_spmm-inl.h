// y[i] = bias[i] + sum over the entries k of a panel and their columns of values[k][i] * x[offset[k]], for the R
// adjacent rows i of the weight that share these columns, and one strip of Tile registers.
//
// R x Tile accumulators never leave their registers. A column costs Tile loads and R broadcasts for R x Tile
// multiply-adds, so that neither the load ports nor the cache that x comes from set the pace, as they do in csr_spmm.

// One column: acc[i] += v[i * row_stride] * x.
template <class T, int R, int Tile>
inline __attribute__((always_inline)) void bsr_column(const T* v, int64_t row_stride, const T* x,
                                                      typename Vec<T>::reg (&acc)[R][Tile]) {
  using V = Vec<T>;
  using reg = typename V::reg;
  reg xs[Tile];
#pragma GCC unroll 8
  for (int t = 0; t < Tile; ++t) xs[t] = R > 1 ? V::keep(V::load(x + t * V::kLanes)) : V::load(x + t * V::kLanes);
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    const reg b = V::keep(V::set1(v[i * row_stride]));
#pragma GCC unroll 8
    for (int t = 0; t < Tile; ++t) acc[i][t] = V::fma(b, xs[t], acc[i][t]);
  }
}

template <class T, int R, int Tile, class Index>
void bsr_spmm(const BsrSpmmArgs<T, Index>& a) {
  using V = Vec<T>;
  using reg = typename V::reg;
  const int64_t unit = a.unit, entry_stride = a.entry_stride, row_stride = a.row_stride;
  const int32_t* const position = a.position;
  for (int64_t p = 0; p < a.panels; ++p) {
    T* const y = a.y + p * a.panel_rows * a.y_pitch;
    const T* const from = a.from != nullptr ? a.from + p * a.panel_rows * a.from_pitch : y;
    const int64_t from_pitch = a.from != nullptr ? a.from_pitch : a.y_pitch;
    const T* const bias = a.bias == nullptr ? nullptr : a.bias + p * a.panel_rows;
    reg acc[R][Tile];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const reg start = bias != nullptr ? V::set1(bias[i]) : V::zero();
#pragma GCC unroll 8
      for (int t = 0; t < Tile; ++t) acc[i][t] = a.accumulate ? V::load(from + i * from_pitch + t * V::kLanes) : start;
    }
    const int64_t end = a.end[p];
    if (a.width == 1) {  // apart, for fewer live pointers than the general case has
      for (int64_t k = a.begin[p]; k < end; ++k) {
        const int64_t at = position == nullptr ? k : static_cast<int64_t>(position[k]);
        const T* const x = a.x + static_cast<int64_t>(a.offset[k]) * unit;
        bsr_column<T, R, Tile>(a.values + at * entry_stride, row_stride, x, acc);
      }
    } else {
      const int64_t x_pitch = a.x_pitch, column_stride = a.column_stride;
      for (int64_t k = a.begin[p]; k < end; ++k) {
        const int64_t at = position == nullptr ? k : static_cast<int64_t>(position[k]);
        const T* v = a.values + at * entry_stride;
        if (k + 1 < end) {  // a block is many cache lines, in an order that no hardware foresees
          const int64_t after = position == nullptr ? k + 1 : static_cast<int64_t>(position[k + 1]);
          const T* const next = a.values + after * entry_stride;
          for (int64_t i = 0; i < a.prefetch; i += 64 / sizeof(T)) __builtin_prefetch(next + i);
        }
        const T* x = a.x + static_cast<int64_t>(a.offset[k]) * unit;
        for (int64_t j = a.width; j > 0; --j, v += column_stride, x += x_pitch)
          bsr_column<T, R, Tile>(v, row_stride, x, acc);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) store_tile<T, Tile>(acc[i], a.relu, a.place, y + i * a.y_pitch);
  }
}
