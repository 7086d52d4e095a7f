// y = W x + bias for one sample: there is no batch to fill registers with, so lanes are what a block stores side by
// side, the rows of a block of one column or the columns of a wider one.

template <class T, int N>
struct Wide {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// Rows [row, row + N) of block row p, blocks of one column: y += values[k] * x[col[k]]. Four sums, since one would wait
// for its own latency.
template <class T, int N>
void bsr_gemv_column(const BsrGemvArgs<T>& a, int64_t p, int64_t row) {
  typename Wide<T, N>::type sum[4] = {}, v;
  const T* const values = a.values + row;
  int64_t k = a.begin[p];
  const int64_t end = a.end[p];
  for (; k + 4 <= end; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(&v, values + (k + i) * a.r, sizeof(v));
      sum[i] += v * a.x[a.col[k + i]];
    }
  }
  for (; k < end; ++k) {
    __builtin_memcpy(&v, values + k * a.r, sizeof(v));
    sum[0] += v * a.x[a.col[k]];
  }
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  const int64_t first = p * a.r + row;
  for (int i = 0; i < N; ++i) a.y[first + i] = sum[0][i] + (a.bias != nullptr ? a.bias[first + i] : T(0));
}

// Rows [row, row + R) of block row p, N columns at a time.
template <class T, int N, int R>
void bsr_gemv_rows(const BsrGemvArgs<T>& a, int64_t p, int64_t row) {
  typename Wide<T, N>::type sum[R] = {}, v, xs;
  T rest[R] = {};
  const int64_t whole = a.c / N * N;
  const int64_t end = a.end[p];
  for (int64_t k = a.begin[p]; k < end; ++k) {
    const T* const values = a.values + (k * a.r + row) * a.c;
    const T* const x = a.x + a.col[k] * a.c;
    for (int64_t j = 0; j < whole; j += N) {
      __builtin_memcpy(&xs, x + j, sizeof(xs));
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        __builtin_memcpy(&v, values + i * a.c + j, sizeof(v));
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

template <class T, int N>
void bsr_gemv_panel(const BsrGemvArgs<T>& a, int64_t p) {
  int64_t row = 0;
  for (; row + 4 <= a.r; row += 4) bsr_gemv_rows<T, N, 4>(a, p, row);
  for (; row < a.r; ++row) bsr_gemv_rows<T, N, 1>(a, p, row);
}

template <class T>
void bsr_gemv(const BsrGemvArgs<T>& a) {
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
