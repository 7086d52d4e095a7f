// Moving activations into and out of strips: blocked transposition through registers, and the sum that gives bias gradients.
// Edges are part of the same loop (partial loads and stores), so that odd sizes keep the speed of even ones.

// dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < m, j < n; zero for m <= i < m_padded.
template <class T>
void transpose(const T* src, int64_t src_pitch, int64_t m, int64_t n, T* dst, int64_t dst_pitch, int64_t m_padded) {
  using V = Vec<T>;
  constexpr int64_t kL = V::kLanes;
  if (m_padded == 1 && dst_pitch == 1) {
    if (n > 0) __builtin_memcpy(dst, src, static_cast<size_t>(n) * sizeof(T));
    return;
  }
  for (int64_t j = 0; j < n; j += kL) {
    const int columns = static_cast<int>(n - j < kL ? n - j : kL);
    for (int64_t i = 0; i < m_padded; i += kL) {
      const int wide = static_cast<int>(m_padded - i < kL ? m_padded - i : kL);
      const int rows = static_cast<int>(m - i < kL ? (m > i ? m - i : 0) : kL);
      const T* const s = src + i * src_pitch + j;
      T* const d = dst + j * dst_pitch + i;
      typename V::reg block[kL];
      if (rows == kL && columns == kL && wide == kL) {
#pragma GCC unroll 16
        for (int r = 0; r < kL; ++r) block[r] = V::load(s + r * src_pitch);
        V::transpose(block);
#pragma GCC unroll 16
        for (int c = 0; c < kL; ++c) V::store(d + c * dst_pitch, block[c]);
      } else {
        for (int r = 0; r < kL; ++r) block[r] = r < rows ? V::load_part(s + r * src_pitch, columns) : V::zero();
        V::transpose(block);
        for (int c = 0; c < columns; ++c) V::store_part(d + c * dst_pitch, block[c], wide);
      }
    }
  }
}

template <class T>
T sum(const T* src, int64_t n) {
  using V = Vec<T>;
  typename V::reg acc[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * V::kLanes <= n; i += 4 * V::kLanes) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) acc[u] = V::add(acc[u], V::load(src + i + u * V::kLanes));
  }
  for (; i < n; i += V::kLanes) {
    acc[0] = V::add(acc[0], V::load_part(src + i, static_cast<int>(n - i < V::kLanes ? n - i : V::kLanes)));
  }
  return V::sum(V::add(V::add(acc[0], acc[1]), V::add(acc[2], acc[3])));
}
