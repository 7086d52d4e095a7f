// csr_dot: the product of a CSR weight with strips of bfloat16 by AVX512_BF16, whose instruction adds two products of
// bfloat16 to a float. Two non-zeros of a row make a pair; their strips, interleaved, are the pairs they are multiplied
// with. Against floats that is half the multiply-adds and half the bytes of the strips, which come from L2.

inline __m512 add_pair(__m512 sum, __m512i x, __m512i v) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)v); }

template <int Tile, class Index>
void csr_dot(const DotArgs<Index>& a) {
  constexpr int64_t kLanes = 32 * Tile;
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int64_t r = 0; r < a.rows; ++r) {
    const __m512 bias = _mm512_set1_ps(a.bias == nullptr ? 0.0f : static_cast<float>(a.bias[r]));
    __m512 sum[2 * Tile];
    for (int i = 0; i < 2 * Tile; ++i) sum[i] = bias;
    int64_t k = a.begin[r];
    const int64_t end = a.end[r];
    for (; k + 2 <= end; k += 2) {
      int32_t both;
      __builtin_memcpy(&both, a.values + k, sizeof both);
      const __m512i v = _mm512_set1_epi32(both);
      const Bf16* const p = a.x + static_cast<int64_t>(a.col[k]) * kLanes;
      const Bf16* const q = a.x + static_cast<int64_t>(a.col[k + 1]) * kLanes;
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        const __m512i even = _mm512_loadu_si512(p + 32 * i), odd = _mm512_loadu_si512(q + 32 * i);
        sum[2 * i] = add_pair(sum[2 * i], _mm512_unpacklo_epi16(even, odd), v);
        sum[2 * i + 1] = add_pair(sum[2 * i + 1], _mm512_unpackhi_epi16(even, odd), v);
      }
    }
    if (k < end) {  // beside zeros: a strip of its own beside a value of zero could be infinite
      const __m512i v = _mm512_set1_epi32(a.values[k].bits), zero = _mm512_setzero_si512();
      const Bf16* const p = a.x + static_cast<int64_t>(a.col[k]) * kLanes;
#pragma GCC unroll 8
      for (int i = 0; i < Tile; ++i) {
        const __m512i even = _mm512_loadu_si512(p + 32 * i);
        sum[2 * i] = add_pair(sum[2 * i], _mm512_unpacklo_epi16(even, zero), v);
        sum[2 * i + 1] = add_pair(sum[2 * i + 1], _mm512_unpackhi_epi16(even, zero), v);
      }
    }
    float* const y = a.y + r * kLanes;
#pragma GCC unroll 8
    for (int i = 0; i < Tile; ++i) {  // what was interleaved comes in order again
      _mm512_storeu_ps(y + 32 * i, _mm512_permutex2var_ps(sum[2 * i], low, sum[2 * i + 1]));
      _mm512_storeu_ps(y + 32 * i + 16, _mm512_permutex2var_ps(sum[2 * i], high, sum[2 * i + 1]));
    }
  }
}

template <int Tile>
void add_dot(Bf16Kernels& k) {
  k.dot_u16[Tile] = &csr_dot<Tile, uint16_t>;
  k.dot_i32[Tile] = &csr_dot<Tile, int32_t>;
  k.dot_tile = k.dot_tile > Tile ? k.dot_tile : Tile;
  add_names(k.names, "csr_dot", 0, Tile, true, 32, sizeof(Bf16), LTH_ISA);
}
