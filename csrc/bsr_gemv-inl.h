// y = W x + bias for one sample: there is no batch to fill registers with, so lanes are what a block stores side by
// side, the rows of a block of one column or the columns of a wider one. The weight may be stored as Bf16.

template <class T, int N>
struct Wide {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N>
void load_wide(const T* p, typename Wide<T, N>::type& v) {
  __builtin_memcpy(&v, p, sizeof(v));
}

template <class T, int N>
void load_wide(const Bf16* p, typename Wide<float, N>::type& v) {
  typename Wide<uint16_t, N>::type h;
  __builtin_memcpy(&h, p, sizeof(h));
  v = (typename Wide<float, N>::type)(__builtin_convertvector(h, typename Wide<uint32_t, N>::type) << 16);
}

// Rows [row, row + N) of block row p, blocks of one column: y += values[k] * x[col[k]]. Four sums, since one would wait
// for its own latency.
template <class T, int N, class Stored>
void bsr_gemv_column(const BsrGemvArgs<T, Stored>& a, int64_t p, int64_t row) {
  typename Wide<T, N>::type sum[4] = {}, v;
  const Stored* const values = a.values + row;
  int64_t k = a.begin[p];
  const int64_t end = a.end[p];
  for (; k + 4 <= end; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      load_wide<T, N>(values + (k + i) * a.r, v);
      sum[i] += v * a.x[a.col[k + i]];
    }
  }
  for (; k < end; ++k) {
    load_wide<T, N>(values + k * a.r, v);
    sum[0] += v * a.x[a.col[k]];
  }
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  const int64_t first = p * a.r + row;
  for (int i = 0; i < N; ++i) a.y[first + i] = sum[0][i] + (a.bias != nullptr ? a.bias[first + i] : T(0));
}

// Rows [row, row + R) of block row p, N columns at a time.
template <class T, int N, int R, class Stored>
void bsr_gemv_rows(const BsrGemvArgs<T, Stored>& a, int64_t p, int64_t row) {
  typename Wide<T, N>::type sum[R] = {}, v, xs;
  T rest[R] = {};
  const int64_t whole = a.c / N * N;
  const int64_t end = a.end[p];
  for (int64_t k = a.begin[p]; k < end; ++k) {
    const Stored* const values = a.values + (k * a.r + row) * a.c;
    const T* const x = a.x + a.col[k] * a.c;
    for (int64_t j = 0; j < whole; j += N) {
      __builtin_memcpy(&xs, x + j, sizeof(xs));
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        load_wide<T, N>(values + i * a.c + j, v);
        sum[i] += v * xs;
      }
    }
    for (int64_t j = whole; j < a.c; ++j) {
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) rest[i] += values[i * a.c + j] * x[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    T total = rest[i] + (a.bias != nullptr ? a.bias[p * a.r + row + i] : T(0));
    for (int j = 0; j < N; ++j) total += sum[i][j];
    a.y[p * a.r + row + i] = total;
  }
}

template <class T, int N, class Stored>
void bsr_gemv_panel(const BsrGemvArgs<T, Stored>& a, int64_t p) {
  int64_t row = 0;
  for (; row + 4 <= a.r; row += 4) bsr_gemv_rows<T, N, 4>(a, p, row);
  for (; row < a.r; ++row) bsr_gemv_rows<T, N, 1>(a, p, row);
}

template <class T, class Stored>
void bsr_gemv(const BsrGemvArgs<T, Stored>& a) {
  // As many lanes as a register has: wider vectors than that would live in memory.
  constexpr int kWidest = Vec<T>::kLanes, kNarrow = kWidest < 4 ? kWidest : 4;
  for (int64_t p = 0; p < a.block_rows; ++p) {
    if (a.c == 1) {
      int64_t row = 0;
      for (; row + kWidest <= a.r; row += kWidest) bsr_gemv_column<T, kWidest>(a, p, row);
      for (; row + kNarrow <= a.r; row += kNarrow) bsr_gemv_column<T, kNarrow>(a, p, row);
      for (; row < a.r; ++row) bsr_gemv_column<T, 1>(a, p, row);
    } else if (a.c >= kWidest) {
      bsr_gemv_panel<T, kWidest>(a, p);
    } else if (kWidest > 8 && a.c >= 8) {
      bsr_gemv_panel<T, 8>(a, p);
    } else {
      bsr_gemv_panel<T, kNarrow>(a, p);
    }
  }
}
