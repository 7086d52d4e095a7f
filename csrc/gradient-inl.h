// The ways in for the gradient of an output, for layers that read it once and then work on what they packed: as those
// of pack-inl.h, but zero where a ReLU that gave `activated` (null: there was none) stops it, and added up for the bias
// on the way. sums: kLanes partial sums, in any order, to which everything that is read is added.

template <class T, bool kGated>
struct GradientRun {
  using V = Vec<T>;
  const T* grad;
  const T* activated;  // not read unless kGated

  void prefetch(int64_t i) const {
    __builtin_prefetch(grad + i);
    if (kGated) __builtin_prefetch(activated + i);
  }
  typename V::reg load(int64_t i) const {
    const typename V::reg v = V::load(grad + i);
    return kGated ? V::gate(v, V::load(activated + i)) : v;
  }
  typename V::reg load_part(int64_t i, int n) const {
    const typename V::reg v = V::load_part(grad + i, n);
    return kGated ? V::gate(v, V::load_part(activated + i, n)) : v;
  }
};

// One block of the transposition, or of its edge: `rows` x `columns` values; each row written is `wide` long and ends
// in zeros. Not inlined, as transpose_block.
template <class T, bool kGated, bool kWhole>
__attribute__((noinline)) void transpose_gradient_block(const GradientRun<T, kGated>& from, int64_t src_pitch, int rows,
                                                        int columns, T* dst, int64_t dst_pitch, int wide, T* sums) {
  using V = Vec<T>;
  typename V::reg block[V::kLanes];
  typename V::reg total[2] = {V::load(sums), V::zero()};
#pragma GCC unroll 16
  for (int r = 0; r < V::kLanes; ++r) {
    if (kWhole) {
      block[r] = from.load(r * src_pitch);
    } else {
      block[r] = r < rows ? from.load_part(r * src_pitch, columns) : V::zero();
    }
    total[r % 2] = V::add(total[r % 2], block[r]);
  }
  V::store(sums, V::add(total[0], total[1]));
  V::transpose(block);
#pragma GCC unroll 16
  for (int c = 0; c < V::kLanes; ++c, dst += dst_pitch) {
    if (kWhole) {
      V::store(dst, block[c]);
    } else if (c < columns) {
      V::store_part(dst, block[c], wide);
    }
  }
}

template <class T, bool kGated>
void copy_gradient_as(GradientRun<T, kGated> from, int64_t src_pitch, int64_t count, int64_t live, T* dst,
                      int64_t dst_pitch, int64_t wide, T* sums, int64_t ahead) {
  using V = Vec<T>;
  using reg = typename V::reg;
  reg total[2] = {V::load(sums), V::zero()};
  for (int64_t i = 0; i < count; ++i, dst += dst_pitch) {
    int64_t j = 0;
    for (; j + 2 * V::kLanes <= live; j += 2 * V::kLanes) {
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        from.prefetch(j + u * V::kLanes + ahead);
        const reg v = from.load(j + u * V::kLanes);
        total[u] = V::add(total[u], v);
        V::store(dst + j + u * V::kLanes, v);
      }
    }
    for (; j < wide; j += V::kLanes) {
      const int64_t left = live - j < V::kLanes ? live - j : V::kLanes;
      const reg v = left > 0 ? from.load_part(j, static_cast<int>(left)) : V::zero();
      total[0] = V::add(total[0], v);
      V::store_part(dst + j, v, static_cast<int>(wide - j < V::kLanes ? wide - j : V::kLanes));
    }
    from.grad += src_pitch;
    if (kGated) from.activated += src_pitch;
  }
  V::store(sums, V::add(total[0], total[1]));
}

// As copy_runs. ahead: how many elements further on memory is asked for what comes next.
template <class T>
void copy_gradient(const T* grad, const T* activated, int64_t src_pitch, int64_t count, int64_t live, T* dst,
                   int64_t dst_pitch, int64_t wide, T* sums, int64_t ahead) {
  if (activated != nullptr) {
    copy_gradient_as(GradientRun<T, true>{grad, activated}, src_pitch, count, live, dst, dst_pitch, wide, sums, ahead);
  } else {
    copy_gradient_as(GradientRun<T, false>{grad, nullptr}, src_pitch, count, live, dst, dst_pitch, wide, sums, ahead);
  }
}

template <class T, bool kGated>
void transpose_gradient_as(const GradientRun<T, kGated>& from, int64_t src_pitch, int64_t m, int64_t n, T* dst,
                           int64_t dst_pitch, int64_t m_padded, T* sums) {
  constexpr int64_t kL = Vec<T>::kLanes;
  for (int64_t j = 0; j < n; j += kL) {
    const int64_t columns = n - j < kL ? n - j : kL;
    for (int64_t i = 0; i < m_padded; i += kL) {
      const int64_t wide = m_padded - i < kL ? m_padded - i : kL;
      const int64_t rows = m - i < kL ? (m > i ? m - i : 0) : kL;
      const int64_t at = i * src_pitch + j;
      const GradientRun<T, kGated> block{from.grad + at, kGated ? from.activated + at : nullptr};
      T* const d = dst + j * dst_pitch + i;
      const auto move = rows == kL && columns == kL && wide == kL ? transpose_gradient_block<T, kGated, true>
                                                                  : transpose_gradient_block<T, kGated, false>;
      move(block, src_pitch, static_cast<int>(rows), static_cast<int>(columns), d, dst_pitch, static_cast<int>(wide),
           sums);
    }
  }
}

// As transpose.
template <class T>
void transpose_gradient(const T* grad, const T* activated, int64_t src_pitch, int64_t m, int64_t n, T* dst,
                        int64_t dst_pitch, int64_t m_padded, T* sums) {
  if (m == 1 && m_padded == 1 && dst_pitch == 1) {
    copy_gradient(grad, activated, 0, 1, n, dst, 0, n, sums, 0);
  } else if (activated != nullptr) {
    transpose_gradient_as(GradientRun<T, true>{grad, activated}, src_pitch, m, n, dst, dst_pitch, m_padded, sums);
  } else {
    transpose_gradient_as(GradientRun<T, false>{grad, nullptr}, src_pitch, m, n, dst, dst_pitch, m_padded, sums);
  }
}

template <class T, bool kGated>
void sum_gradient_as(const GradientRun<T, kGated>& from, int64_t n, T* sums) {
  using V = Vec<T>;
  typename V::reg total[2] = {V::load(sums), V::zero()};
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    total[0] = V::add(total[0], from.load(i));
    total[1] = V::add(total[1], from.load(i + V::kLanes));
  }
  for (; i < n; i += V::kLanes) {
    const int64_t left = n - i < V::kLanes ? n - i : V::kLanes;
    total[0] = V::add(total[0], from.load_part(i, static_cast<int>(left)));
  }
  V::store(sums, V::add(total[0], total[1]));
}

// The sums alone, of n values.
template <class T>
void sum_gradient(const T* grad, const T* activated, int64_t n, T* sums) {
  if (activated != nullptr) {
    sum_gradient_as(GradientRun<T, true>{grad, activated}, n, sums);
  } else {
    sum_gradient_as(GradientRun<T, false>{grad, nullptr}, n, sums);
  }
}
