// The product of a CSR or BSR weight with strips of bfloat16 by AVX512_BF16, whose instruction adds two products of
// bfloat16 to a float. Two non-zeros of a row make a pair; their strips, interleaved, are the pairs they are multiplied
// with. Against floats that is half the multiply-adds and half the bytes of the strips, which come from L2.

inline __m512 add_pair(__m512 sum, __m512i x, __m512i v) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)v); }

// sum += the two non-zeros v times their strips p and q.
template <int Tile>
inline void add_strips(const Bf16* p, const Bf16* q, __m512i v, __m512 (&sum)[2 * Tile]) {
#pragma GCC unroll 8
  for (int i = 0; i < Tile; ++i) {
    const __m512i even = _mm512_loadu_si512(p + 32 * i), odd = _mm512_loadu_si512(q + 32 * i);
    sum[2 * i] = add_pair(sum[2 * i], _mm512_unpacklo_epi16(even, odd), v);
    sum[2 * i + 1] = add_pair(sum[2 * i + 1], _mm512_unpackhi_epi16(even, odd), v);
  }
}

inline __m512i two_values(const Bf16* p) {
  int32_t both;
  __builtin_memcpy(&both, p, sizeof both);
  return _mm512_set1_epi32(both);
}

// What was interleaved, in order again.
template <int Tile>
inline void store_strip(float* y, const __m512 (&sum)[2 * Tile]) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
#pragma GCC unroll 8
  for (int i = 0; i < Tile; ++i) {
    _mm512_storeu_ps(y + 32 * i, _mm512_permutex2var_ps(sum[2 * i], low, sum[2 * i + 1]));
    _mm512_storeu_ps(y + 32 * i + 16, _mm512_permutex2var_ps(sum[2 * i], high, sum[2 * i + 1]));
  }
}

// Two sums, of every other pair, or one would wait for the latency of its additions.
template <int Tile, class Index>
void csr_dot(const DotArgs<Index>& a) {
  const auto strip = [&a](int64_t k) { return a.x + static_cast<int64_t>(a.offset[k]) * a.unit; };
  for (int64_t r = 0; r < a.rows; ++r) {
    const __m512 bias = _mm512_set1_ps(a.bias == nullptr ? 0.0f : static_cast<float>(a.bias[r]));
    __m512 sum[2 * Tile], other[2 * Tile];
    for (int i = 0; i < 2 * Tile; ++i) {
      sum[i] = bias;
      other[i] = _mm512_setzero_ps();
    }
    int64_t k = a.begin[r];
    const int64_t end = a.end[r];
    for (; k + 4 <= end; k += 4) {
      add_strips<Tile>(strip(k), strip(k + 1), two_values(a.values + k), sum);
      add_strips<Tile>(strip(k + 2), strip(k + 3), two_values(a.values + k + 2), other);
    }
    if (k + 2 <= end) {
      add_strips<Tile>(strip(k), strip(k + 1), two_values(a.values + k), sum);
      k += 2;
    }
    if (k < end) {  // beside zeros: an infinity beside a value of zero would become a NaN
      const __m512i v = _mm512_set1_epi32(a.values[k].bits), zero = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        const __m512i even = _mm512_loadu_si512(strip(k) + 32 * i);
        other[2 * i] = add_pair(other[2 * i], _mm512_unpacklo_epi16(even, zero), v);
        other[2 * i + 1] = add_pair(other[2 * i + 1], _mm512_unpackhi_epi16(even, zero), v);
      }
    }
    for (int i = 0; i < 2 * Tile; ++i) sum[i] = _mm512_add_ps(sum[i], other[i]);
    store_strip<Tile>(a.y + r * a.y_pitch, sum);
  }
}

// Rows [row, row + R) of block row p, two columns at a time; what is read of x serves R rows.
template <int Tile, int R>
void bsr_dot_rows(const BsrDotArgs& a, int64_t p, int64_t row) {
  constexpr int64_t kLanes = 32 * Tile;
  const int64_t first = p * a.r + row, size = a.r * a.c;
  __m512 sum[R][2 * Tile];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    const __m512 bias = _mm512_set1_ps(a.bias == nullptr ? 0.0f : static_cast<float>(a.bias[first + i]));
    for (int t = 0; t < 2 * Tile; ++t) sum[i][t] = bias;
  }
  for (int64_t k = a.begin[p]; k < a.end[p]; ++k) {
    const Bf16* const values = a.values + k * size + row * a.c;
    const Bf16* x = a.x + a.col[k] * a.c * kLanes;
    for (int64_t i = 0; i < R * a.c; i += 32) __builtin_prefetch(values + size + i);  // of the next block
    for (int64_t j = 0; j < a.c; j += 2, x += 2 * kLanes) {
      __m512i xs[2 * Tile];
#pragma GCC unroll 8
      for (int t = 0; t < Tile; ++t) {
        const __m512i even = _mm512_loadu_si512(x + 32 * t), odd = _mm512_loadu_si512(x + kLanes + 32 * t);
        xs[2 * t] = _mm512_unpacklo_epi16(even, odd);
        xs[2 * t + 1] = _mm512_unpackhi_epi16(even, odd);
      }
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const __m512i v = two_values(values + i * a.c + j);
#pragma GCC unroll 8
        for (int t = 0; t < 2 * Tile; ++t) sum[i][t] = add_pair(sum[i][t], xs[t], v);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) store_strip<Tile>(a.y + (first + i) * kLanes, sum[i]);
}

template <int Tile>
void bsr_dot(const BsrDotArgs& a) {
  for (int64_t p = 0; p < a.block_rows; ++p) {
    int64_t row = 0;
    for (; row + 4 <= a.r; row += 4) bsr_dot_rows<Tile, 4>(a, p, row);
    for (; row + 2 <= a.r; row += 2) bsr_dot_rows<Tile, 2>(a, p, row);
    if (row < a.r) bsr_dot_rows<Tile, 1>(a, p, row);
  }
}

template <int Tile>
void add_dot(Bf16Kernels& k) {
  k.dot_u16[Tile] = &csr_dot<Tile, uint16_t>;
  k.dot_i32[Tile] = &csr_dot<Tile, int32_t>;
  k.bsr_dot[Tile] = &bsr_dot<Tile>;
  k.dot_tile = k.dot_tile > Tile ? k.dot_tile : Tile;
  add_names(k.names, "csr_dot", 0, Tile, true, 32, sizeof(Bf16), LTH_ISA);
}
