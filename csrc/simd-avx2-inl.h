// AVX2 + FMA: Vec<float> of 8 lanes and Vec<double> of 4. Included inside a target region and a namespace; see
// kernels-avx2.cpp. The same members in simd-avx512-inl.h and simd-scalar-inl.h; what each means is written in
// simd-scalar-inl.h.

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using reg = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  static constexpr int kBackwardTile = 4;  // 4 of x, 4 of dx, 4 sums, the strip read and its value: 14 of 16 registers

  static reg zero() { return _mm256_setzero_ps(); }
  static reg set1(float v) { return _mm256_set1_ps(v); }
  static reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, reg v) { _mm256_storeu_ps(p, v); }
  static reg load_part(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static reg load_between(const float* p, int from, int to) {
    return _mm256_maskload_ps(p, _mm256_andnot_si256(first(from), first(to)));
  }
  static void store_part(float* p, reg v, int n) { _mm256_maskstore_ps(p, first(n), v); }
  static reg keep(reg v) {
    asm("" : "+x"(v));
    return v;
  }
  static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
  static reg even(reg a, reg b) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
  }
  static reg relu(reg v) { return _mm256_max_ps(zero(), v); }  // of a NaN and zero the second operand
  static reg gate(reg v, reg activated) {
    return _mm256_and_ps(v, _mm256_cmp_ps(activated, zero(), _CMP_NLE_UQ));
  }
  static float sum(reg v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  static void add_sums(float* out, const reg (&p)[4], int n = 4) {
    const reg s = _mm256_hadd_ps(_mm256_hadd_ps(p[0], p[1]), _mm256_hadd_ps(p[2], p[3]));
    const __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    if (n == 4) {
      _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), t));
    } else {
      for (int i = 0; i < n; ++i) out[i] += t[i];
    }
  }

  static void transpose(reg (&r)[8]) {
    reg t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      const reg low = r[j];
      r[j] = _mm256_permute2f128_ps(low, r[j + 4], 0x20);
      r[j + 4] = _mm256_permute2f128_ps(low, r[j + 4], 0x31);
    }
  }

 private:
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

template <>
struct Vec<double> {
  using reg = __m256d;
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  static constexpr int kBackwardTile = 4;

  static reg zero() { return _mm256_setzero_pd(); }
  static reg set1(double v) { return _mm256_set1_pd(v); }
  static reg load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, reg v) { _mm256_storeu_pd(p, v); }
  static reg load_part(const double* p, int n) { return _mm256_maskload_pd(p, first(n)); }
  static reg load_between(const double* p, int from, int to) {
    return _mm256_maskload_pd(p, _mm256_andnot_si256(first(from), first(to)));
  }
  static void store_part(double* p, reg v, int n) { _mm256_maskstore_pd(p, first(n), v); }
  static reg keep(reg v) {
    asm("" : "+x"(v));
    return v;
  }
  static reg add(reg a, reg b) { return _mm256_add_pd(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_pd(a, b, c); }
  static reg even(reg a, reg b) { return _mm256_permute4x64_pd(_mm256_unpacklo_pd(a, b), 0xd8); }
  static reg relu(reg v) { return _mm256_max_pd(zero(), v); }  // of a NaN and zero the second operand
  static reg gate(reg v, reg activated) {
    return _mm256_and_pd(v, _mm256_cmp_pd(activated, zero(), _CMP_NLE_UQ));
  }
  static double sum(reg v) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }

  static void add_sums(double* out, const reg (&p)[4], int n = 4) {
    const reg a = _mm256_hadd_pd(p[0], p[1]);
    const reg b = _mm256_hadd_pd(p[2], p[3]);
    const reg s = add(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
    if (n == 4) {
      _mm256_storeu_pd(out, add(_mm256_loadu_pd(out), s));
    } else {
      for (int i = 0; i < n; ++i) out[i] += s[i];
    }
  }

  static void transpose(reg (&r)[4]) {
    const reg a = _mm256_unpacklo_pd(r[0], r[1]);
    const reg b = _mm256_unpackhi_pd(r[0], r[1]);
    const reg c = _mm256_unpacklo_pd(r[2], r[3]);
    const reg d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
  }

 private:
  static __m256i first(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
};
