// The weight gradient of a block of several columns: dw[i][j] += <x_j, dy_i> over the batch. Tiles of the block are
// outer products in registers, so that each strip read feeds several multiply-adds, and lanes are summed only once for
// all the strips of a call.

template <class T, int R, int C>
void bsr_outer_tile(const BsrOuterArgs<T>& a, int64_t row, int64_t column) {
  using V = Vec<T>;
  using reg = typename V::reg;
  const int64_t pitch = a.pitch, steps = a.registers * V::kLanes;
  reg acc[R][C];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) acc[i][j] = V::zero();
  }
  const T* x = a.x + column * pitch;
  const T* dy = a.dy + row * pitch;
  for (int64_t s = 0; s < a.strips; ++s, x += a.x_strip, dy += a.dy_strip) {
    for (int64_t t = 0; t < steps; t += V::kLanes) {
      reg xs[C];
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) xs[j] = V::keep(V::load(x + j * pitch + t));
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const reg g = V::keep(V::load(dy + i * pitch + t));
#pragma GCC unroll 4
        for (int j = 0; j < C; ++j) acc[i][j] = V::fma(g, xs[j], acc[i][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    T* const dw = a.dw + (row + i) * a.dw_pitch + column;
    if constexpr (C == 4) {
      V::add_sums(dw, acc[i]);
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) dw[j] += V::sum(acc[i][j]);
    }
  }
}

template <class T, int C>
void bsr_outer_rows(const BsrOuterArgs<T>& a, int64_t column) {
  constexpr int kRows = Vec<T>::kRegisters >= 32 ? 4 : 2;
  int64_t i = 0;
  for (; i + kRows <= a.rows; i += kRows) bsr_outer_tile<T, kRows, C>(a, i, column);
  for (; i < a.rows; ++i) bsr_outer_tile<T, 1, C>(a, i, column);
}

template <class T>
void bsr_outer(const BsrOuterArgs<T>& a) {
  int64_t j = 0;
  for (; j + 4 <= a.cols; j += 4) bsr_outer_rows<T, 4>(a, j);
  for (; j < a.cols; ++j) bsr_outer_rows<T, 1>(a, j);
}
