// Moving activations into and out of strips: blocked transposition through registers, and the sum that gives bias
// gradients. Edges are part of the same loop (partial loads and stores), so that odd sizes keep the speed of even ones.
// T is what registers hold, From and To what memory does (memory-inl.h).

// One block of lanes x lanes values. Not inlined: in a loop the compiler would keep all the row addresses, and spill
// them.
template <class T, class From, class To>
__attribute__((noinline)) void transpose_block(const From* src, int64_t src_pitch, To* dst, int64_t dst_pitch) {
  using V = Vec<T>;
  typename V::reg block[V::kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < V::kLanes; ++r, src += src_pitch) block[r] = Memory<From>::load(src);
  V::transpose(block);
#pragma GCC unroll 16
  for (int c = 0; c < V::kLanes; ++c, dst += dst_pitch) Memory<To>::store(dst, block[c]);
}

// A block at the edge: `rows` x `columns` values; each row written is `wide` long and ends in zeros.
template <class T, class From, class To>
__attribute__((noinline)) void transpose_edge(const From* src, int64_t src_pitch, int rows, int columns, To* dst,
                                              int64_t dst_pitch, int wide) {
  using V = Vec<T>;
  typename V::reg block[V::kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < V::kLanes; ++r, src += src_pitch)
    block[r] = r < rows ? Memory<From>::load_part(src, columns) : V::zero();
  V::transpose(block);
#pragma GCC unroll 16
  for (int c = 0; c < V::kLanes; ++c, dst += dst_pitch) {
    if (c == columns) return;
    Memory<To>::store_part(dst, block[c], wide);
  }
}

// `count` runs of `live` values, each ending in zeros up to `wide` values.
template <class T, class From, class To>
void copy_runs(const From* src, int64_t src_pitch, int64_t count, int64_t live, To* dst, int64_t dst_pitch,
               int64_t wide) {
  using V = Vec<T>;
  if (src_pitch == live && dst_pitch == live && wide == live) {  // one run
    live = wide = live * count;
    count = count > 0;
  }
  for (int64_t i = 0; i < count; ++i, src += src_pitch, dst += dst_pitch) {
    int64_t j = 0;
    for (; j + V::kLanes <= live; j += V::kLanes) Memory<To>::store(dst + j, Memory<From>::load(src + j));
    for (; j < wide; j += V::kLanes) {
      const typename V::reg v =
          j < live ? Memory<From>::load_part(src + j, static_cast<int>(live - j)) : V::zero();
      Memory<To>::store_part(dst + j, v, static_cast<int>(wide - j < V::kLanes ? wide - j : V::kLanes));
    }
  }
}

// dst[j * dst_pitch + i] = src[i * src_pitch + j] for i < m, j < n; zero for m <= i < m_padded.
template <class T, class From, class To>
void transpose(const From* src, int64_t src_pitch, int64_t m, int64_t n, To* dst, int64_t dst_pitch,
               int64_t m_padded) {
  // Several cache lines of a row at a time: rows far apart are as many pages and streams, too many for one line each.
  constexpr int64_t kL = Vec<T>::kLanes, kSpan = 256 / sizeof(From);
  if (m == 1 && m_padded == 1 && dst_pitch == 1) {
    copy_runs<T>(src, n, 1, n, dst, n, n);
    return;
  }
  if (n == 1 && src_pitch == 1 && m == m_padded) {
    copy_runs<T>(src, m, 1, m, dst, m, m);
    return;
  }
  for (int64_t first = 0; first < n; first += kSpan) {
    const int64_t last = first + kSpan < n ? first + kSpan : n;
    for (int64_t i = 0; i < m_padded; i += kL) {
      const int64_t wide = m_padded - i < kL ? m_padded - i : kL;
      const int64_t rows = m - i < kL ? (m > i ? m - i : 0) : kL;
      for (int64_t j = first; j < last; j += kL) {
        const int64_t columns = last - j < kL ? last - j : kL;
        const From* const s = src + i * src_pitch + j;
        To* const d = dst + j * dst_pitch + i;
        if (rows == kL && columns == kL && wide == kL) {
          transpose_block<T>(s, src_pitch, d, dst_pitch);
        } else {
          transpose_edge<T>(s, src_pitch, static_cast<int>(rows), static_cast<int>(columns), d, dst_pitch,
                            static_cast<int>(wide));
        }
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
