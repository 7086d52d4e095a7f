// AVX-512: Vec<float> of 16 lanes and Vec<double> of 8. Included inside a target region and a namespace; see
// kernels-avx512.cpp. The same members in simd-avx2-inl.h and simd-scalar-inl.h; what each means is written in
// simd-scalar-inl.h.

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using reg = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  static constexpr int kBackwardTile = 8;

  static reg zero() { return _mm512_setzero_ps(); }
  static reg set1(float v) { return _mm512_set1_ps(v); }
  static reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, reg v) { _mm512_storeu_ps(p, v); }
  static reg load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static reg load_between(const float* p, int from, int to) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first(to) & ~first(from)), p);
  }
  static void store_part(float* p, reg v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static reg keep(reg v) {
    asm("" : "+v"(v));
    return v;
  }
  static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
  static reg even(reg a, reg b) {
    const __m512i from = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, from, b);
  }
  static reg relu(reg v) { return _mm512_max_ps(zero(), v); }  // of a NaN and zero the second operand
  static reg gate(reg v, reg activated) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(activated, zero(), _CMP_NLE_UQ), v);
  }
  static float sum(reg v) { return _mm512_reduce_add_ps(v); }

  static void add_sums(float* out, const reg (&p)[4], int n = 4) {
    const reg a = add(_mm512_shuffle_f32x4(p[0], p[1], 0x44), _mm512_shuffle_f32x4(p[0], p[1], 0xee));
    const reg b = add(_mm512_shuffle_f32x4(p[2], p[3], 0x44), _mm512_shuffle_f32x4(p[2], p[3], 0xee));
    reg c =
        add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));  // 128-bit lane i: four parts of sum i
    c = add(c, _mm512_permute_ps(c, 0xb1));
    c = add(c, _mm512_permute_ps(c, 0x4e));
    const reg s = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), c);
    const __m128 t = _mm512_castps512_ps128(s);
    if (n == 4) {
      _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), t));
    } else {
      const __mmask8 m = static_cast<__mmask8>((1u << n) - 1u);
      _mm_mask_storeu_ps(out, m, _mm_add_ps(_mm_maskz_loadu_ps(m, out), t));
    }
  }

  static void transpose(reg (&r)[16]) {
    reg t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = unpack_low(t[i], t[i + 2]);
      r[i + 1] = unpack_high(t[i], t[i + 2]);
      r[i + 2] = unpack_low(t[i + 1], t[i + 3]);
      r[i + 3] = unpack_high(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {  // 4x4 transposition of 128-bit lanes
      t[j] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
      t[j + 4] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);
      t[j + 8] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
      t[j + 12] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
      r[j + 4] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0x88);
      r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
      r[j + 12] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0xdd);
    }
  }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static reg unpack_low(reg a, reg b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static reg unpack_high(reg a, reg b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
};

template <>
struct Vec<double> {
  using reg = __m512d;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 32;
  static constexpr int kBackwardTile = 8;

  static reg zero() { return _mm512_setzero_pd(); }
  static reg set1(double v) { return _mm512_set1_pd(v); }
  static reg load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, reg v) { _mm512_storeu_pd(p, v); }
  static reg load_part(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static reg load_between(const double* p, int from, int to) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>(first(to) & ~first(from)), p);
  }
  static void store_part(double* p, reg v, int n) { _mm512_mask_storeu_pd(p, first(n), v); }
  static reg keep(reg v) {
    asm("" : "+v"(v));
    return v;
  }
  static reg add(reg a, reg b) { return _mm512_add_pd(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_pd(a, b, c); }
  static reg even(reg a, reg b) {
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b);
  }
  static reg relu(reg v) { return _mm512_max_pd(zero(), v); }  // of a NaN and zero the second operand
  static reg gate(reg v, reg activated) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(activated, zero(), _CMP_NLE_UQ), v);
  }
  static double sum(reg v) { return _mm512_reduce_add_pd(v); }

  static void add_sums(double* out, const reg (&p)[4], int n = 4) {
    const reg a = add(_mm512_shuffle_f64x2(p[0], p[1], 0x44), _mm512_shuffle_f64x2(p[0], p[1], 0xee));
    const reg b = add(_mm512_shuffle_f64x2(p[2], p[3], 0x44), _mm512_shuffle_f64x2(p[2], p[3], 0xee));
    reg c = add(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
    c = add(c, _mm512_permute_pd(c, 0x55));
    const reg s = _mm512_permutexvar_pd(_mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0), c);
    const __m256d t = _mm512_castpd512_pd256(s);
    if (n == 4) {
      _mm256_storeu_pd(out, _mm256_add_pd(_mm256_loadu_pd(out), t));
    } else {
      const __mmask8 m = first(n);
      _mm256_mask_storeu_pd(out, m, _mm256_add_pd(_mm256_maskz_loadu_pd(m, out), t));
    }
  }

  static void transpose(reg (&r)[8]) {
    reg t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    for (int j = 0; j < 2; ++j) {  // 4x4 transposition of 128-bit lanes
      const reg a = _mm512_shuffle_f64x2(t[j], t[j + 2], 0x88);
      const reg b = _mm512_shuffle_f64x2(t[j], t[j + 2], 0xdd);
      const reg c = _mm512_shuffle_f64x2(t[j + 4], t[j + 6], 0x88);
      const reg d = _mm512_shuffle_f64x2(t[j + 4], t[j + 6], 0xdd);
      r[j] = _mm512_shuffle_f64x2(a, c, 0x88);
      r[j + 2] = _mm512_shuffle_f64x2(b, d, 0x88);
      r[j + 4] = _mm512_shuffle_f64x2(a, c, 0xdd);
      r[j + 6] = _mm512_shuffle_f64x2(b, d, 0xdd);
    }
  }

 private:
  static __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
};
