// Batches smaller than a register: strips of L samples, a power of two below Vec<T>::kLanes, row by row of the weight.
//     csr_few      y[r] = bias[r] + sum_k values[k] * x[col[k]]
//     csr_fewgrad  dx[col[k]] += values[k] * dy[r],  dw[k] = <dy[r], x[col[k]]>
// With so few samples reading the weight is what takes the time. A register holds the strips of several non-zeros, and
// both gradients go through the weight in its own order, with a strip of dx added to for each non-zero: the transposed
// index would send them all over a weight that fits no cache.

constexpr int64_t kAhead = 512;  // non-zeros by which a weight from memory is asked for ahead of its use

template <class T, int L, bool Ahead, class Index, class Stored>
void csr_few_rows(const FewArgs<T, Index, Stored>& a) {
  using F = Few<T, L>;
  using reg = typename F::reg;
  constexpr int kR = F::kRegs;
  const T* const x = a.x;
  const Index* const col = a.col;
  const Stored* const values = a.values;
  for (int64_t r = 0; r < a.rows; ++r) {
    reg acc[2][kR];
    for (int u = 0; u < 2; ++u) {
      for (int i = 0; i < kR; ++i) acc[u][i] = F::zero();
    }
    int64_t k = a.begin[r];
    const int64_t end = a.end[r];
    for (; k + 8 <= end; k += 8) {
      if (Ahead) {
        __builtin_prefetch(values + k + kAhead);
        __builtin_prefetch(col + k + kAhead);
      }
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        reg s[kR], v[kR];
        F::gather(x, col + k + 4 * u, s);
        F::spread(values + k + 4 * u, v);
        for (int i = 0; i < kR; ++i) acc[u][i] = F::fma(v[i], s[i], acc[u][i]);
      }
    }
    if (k + 4 <= end) {
      reg s[kR], v[kR];
      F::gather(x, col + k, s);
      F::spread(values + k, v);
      for (int i = 0; i < kR; ++i) acc[0][i] = F::fma(v[i], s[i], acc[0][i]);
      k += 4;
    }
    reg all = F::add(acc[0][0], acc[1][0]);
    for (int i = 1; i < kR; ++i) all = F::add(all, F::add(acc[0][i], acc[1][i]));
    typename F::strip y = F::fold(all);
    for (; k < end; ++k) y = F::plus_scaled(y, values[k], F::load(x + static_cast<int64_t>(col[k]) * L));
    if (a.bias != nullptr) y = F::plus(y, F::set1(a.bias[r]));
    F::store(a.y + r * L, y);
  }
}

template <class T, int L, class Index, class Stored>
void csr_few(const FewArgs<T, Index, Stored>& a) {
  if (a.ahead) {
    csr_few_rows<T, L, true>(a);
  } else {
    csr_few_rows<T, L, false>(a);
  }
}

template <class T, int L, bool WantDx, bool WantDw, bool Ahead, class Index>
void csr_fewgrad_rows(const ScatterArgs<T, Index>& a) {
  using F = Few<T, L>;
  using reg = typename F::reg;
  constexpr int kR = F::kRegs;
  const T* const x = a.x;
  const Index* const col = a.col;
  const T* const values = a.values;
  T* const dx = a.dx;
  T* const dw = a.dw;
  for (int64_t r = 0; r < a.rows; ++r) {
    const typename F::strip g = F::load(a.dy + r * L);
    const reg gs = F::repeat(g);
    int64_t k = a.begin[r];
    const int64_t end = a.end[r];
    for (; k + 4 <= end; k += 4) {
      if (Ahead) {
        if (WantDx) __builtin_prefetch(values + k + kAhead);
        if (WantDw) __builtin_prefetch(dw + k + kAhead, 1);
        __builtin_prefetch(col + k + kAhead);
      }
      if (WantDw) {
        reg s[kR];
        F::gather(x, col + k, s);
        for (int i = 0; i < kR; ++i) s[i] = F::mul(gs, s[i]);
        F::sums(dw + k, s);
      }
      if (WantDx) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          T* const d = dx + static_cast<int64_t>(col[k + j]) * L;
          F::store(d, F::plus_scaled(F::load(d), values[k + j], g));
        }
      }
    }
    for (; k < end; ++k) {
      const int64_t c = static_cast<int64_t>(col[k]) * L;
      if (WantDw) {
        T p[L];
        F::store(p, F::times(g, F::load(x + c)));
        T total = p[0];
        for (int i = 1; i < L; ++i) total += p[i];
        dw[k] = total;
      }
      if (WantDx) F::store(dx + c, F::plus_scaled(F::load(dx + c), values[k], g));
    }
  }
}

template <class T, int L, bool WantDx, bool WantDw, class Index>
void csr_fewgrad_wanted(const ScatterArgs<T, Index>& a) {
  if (a.ahead) {
    csr_fewgrad_rows<T, L, WantDx, WantDw, true>(a);
  } else {
    csr_fewgrad_rows<T, L, WantDx, WantDw, false>(a);
  }
}

template <class T, int L, class Index>
void csr_fewgrad(const ScatterArgs<T, Index>& a) {
  if (a.dx == nullptr) {
    csr_fewgrad_wanted<T, L, false, true>(a);
  } else if (a.dw == nullptr) {
    csr_fewgrad_wanted<T, L, true, false>(a);
  } else {
    csr_fewgrad_wanted<T, L, true, true>(a);
  }
}
