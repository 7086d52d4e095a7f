// y[r] = bias[r] + sum over the non-zeros k of row r of values[k] * x[offset[k]], for one strip of Tile registers.
//
// The Tile accumulators of a row never leave their registers; a non-zero costs one broadcast and Tile multiply-adds
// that read x straight from memory. Narrow tiles keep several copies of the accumulators, since Tile multiply-adds
// alone would wait for their own latency.

// The accumulators of a row, once they are summed up.
template <class T, int Tile>
inline __attribute__((always_inline)) void store_tile(typename Vec<T>::reg (&acc)[Tile], bool relu, const Place* place,
                                                      T* y) {
  using V = Vec<T>;
  if (relu) {
#pragma GCC unroll 8
    for (int i = 0; i < Tile; ++i) acc[i] = V::relu(acc[i]);
  }
  if (place == nullptr) {
#pragma GCC unroll 8
    for (int i = 0; i < Tile; ++i) V::store(y + i * V::kLanes, acc[i]);
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Tile; ++i) V::store_part(y + place[i].at, acc[i], static_cast<int>(place[i].lanes));
}

template <class T, int Tile, class Index>
void csr_spmm(const SpmmArgs<T, Index>& a) {
  using V = Vec<T>;
  using reg = typename V::reg;
  constexpr int kCopies = Tile >= 4 ? (Tile >= 8 ? 1 : 2) : 4;
  const T* const x = a.x;
  const Index* const offset = a.offset;
  const T* const values = a.values;
  const int64_t unit = a.unit;
  for (int64_t r = 0; r < a.rows; ++r) {
    T* const y = a.y + r * a.y_pitch;
    if (a.ahead) {
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i)
        __builtin_prefetch(y + a.y_pitch + (a.place != nullptr ? a.place[i].at : i * V::kLanes), 1);
    }
    reg acc[kCopies][Tile];
    if (a.accumulate) {
      const T* const from = a.from != nullptr ? a.from + r * a.from_pitch : y;
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) acc[0][i] = V::load(from + i * V::kLanes);
    } else {
      const reg start = a.bias != nullptr ? V::set1(a.bias[r]) : V::zero();
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) acc[0][i] = start;
    }
#pragma GCC unroll 4
    for (int u = 1; u < kCopies; ++u) {
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) acc[u][i] = V::zero();
    }
    int64_t k = a.begin[r];
    const int64_t end = a.end[r];
    if (kCopies > 1) {
      for (; k + kCopies <= end; k += kCopies) {
#pragma GCC unroll 4
        for (int u = 0; u < kCopies; ++u) {
          const T* const p = x + static_cast<int64_t>(offset[k + u]) * unit;
          const reg v = V::set1(values[k + u]);
#pragma GCC unroll 8
          for (int i = 0; i < Tile; ++i) acc[u][i] = V::fma(v, V::load(p + i * V::kLanes), acc[u][i]);
        }
      }
#pragma GCC unroll 4
      for (int u = 1; u < kCopies; ++u) {
#pragma GCC unroll 8
        for (int i = 0; i < Tile; ++i) acc[0][i] = V::add(acc[0][i], acc[u][i]);
      }
    }
    for (; k < end; ++k) {
      const T* const p = x + static_cast<int64_t>(offset[k]) * unit;
      const reg v = V::set1(values[k]);
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) acc[0][i] = V::fma(v, V::load(p + i * V::kLanes), acc[0][i]);
    }
    store_tile<T, Tile>(acc[0], a.relu, a.place, y);
  }
}
