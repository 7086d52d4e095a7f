// Few<T, L> for AVX2, and for AVX-512, where wider registers would have to be filled from as many loads. The members
// are those of few-scalar-inl.h. Strips are gathered by scalar and narrow loads: the gather instructions are slower.

template <class T, int L>
struct Few;

struct Four {
  uint64_t at[4];
};

// Four indices by one or two loads: the load ports have enough to do.
inline Four four(const uint16_t* c) {
  uint64_t q;
  __builtin_memcpy(&q, c, sizeof q);
  return {{q & 0xffff, q >> 16 & 0xffff, q >> 32 & 0xffff, q >> 48}};
}

inline Four four(const int32_t* c) {
  uint64_t p, q;
  __builtin_memcpy(&p, c, sizeof p);
  __builtin_memcpy(&q, c + 2, sizeof q);
  return {{p & 0xffffffff, p >> 32, q & 0xffffffff, q >> 32}};
}

// Four values, and one as all lanes.
inline __m128 four_values(const float* v) { return _mm_loadu_ps(v); }
inline __m128 four_values(const Bf16* v) {
  const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(v));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
}

inline __m256 one_value(const float* v) { return _mm256_broadcast_ss(v); }
inline __m256 one_value(const Bf16* v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(static_cast<short>(v->bits)), 16));
}

inline __m128 unpaired(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

// What the strips of all widths share: registers of four and eight floats, two and four doubles.
struct Few128 {
  using reg = __m128;
  static reg zero() { return _mm_setzero_ps(); }
  static reg add(reg a, reg b) { return _mm_add_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm_mul_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm_fmadd_ps(a, b, c); }
};

struct Few256 {
  using reg = __m256;
  static reg zero() { return _mm256_setzero_ps(); }
  static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
};

struct Few128d {
  using reg = __m128d;
  static reg zero() { return _mm_setzero_pd(); }
  static reg add(reg a, reg b) { return _mm_add_pd(a, b); }
  static reg mul(reg a, reg b) { return _mm_mul_pd(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm_fmadd_pd(a, b, c); }
};

struct Few256d {
  using reg = __m256d;
  static reg zero() { return _mm256_setzero_pd(); }
  static reg add(reg a, reg b) { return _mm256_add_pd(a, b); }
  static reg mul(reg a, reg b) { return _mm256_mul_pd(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_pd(a, b, c); }
};

template <class T>
struct Single {  // a strip of one sample
  using strip = T;
  static strip load(const T* p) { return *p; }
  static void store(T* p, strip v) { *p = v; }
  static strip set1(T v) { return v; }
  static strip plus(strip a, strip b) { return a + b; }
  static strip times(strip a, strip b) { return a * b; }
  static strip plus_scaled(strip a, T v, strip b) { return v * b + a; }
};

template <>
struct Few<float, 1> : Few128, Single<float> {
  static constexpr int kRegs = 1;
  static reg repeat(strip v) { return _mm_set1_ps(v); }
  static strip fold(reg v) {
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  template <class Index>
  static void gather(const float* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    reg v = _mm_load_ss(x + f.at[0]);
    v = _mm_insert_ps(v, _mm_load_ss(x + f.at[1]), 0x10);
    v = _mm_insert_ps(v, _mm_load_ss(x + f.at[2]), 0x20);
    out[0] = _mm_insert_ps(v, _mm_load_ss(x + f.at[3]), 0x30);
  }
  template <class Stored>
  static void spread(const Stored* v, reg (&out)[kRegs]) { out[0] = four_values(v); }
  static void sums(float* out, const reg (&p)[kRegs]) { _mm_storeu_ps(out, p[0]); }
};

template <>
struct Few<float, 2> : Few128 {
  using strip = __m128;  // the lower half of it
  static constexpr int kRegs = 2;
  static strip load(const float* p) { return _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  static void store(float* p, strip v) { _mm_storel_pi(reinterpret_cast<__m64*>(p), v); }
  static strip set1(float v) { return _mm_set1_ps(v); }
  static strip plus(strip a, strip b) { return _mm_add_ps(a, b); }
  static strip times(strip a, strip b) { return _mm_mul_ps(a, b); }
  static strip plus_scaled(strip a, float v, strip b) { return _mm_fmadd_ps(_mm_set1_ps(v), b, a); }
  static reg repeat(strip v) { return _mm_movelh_ps(v, v); }
  static strip fold(reg v) { return _mm_add_ps(v, _mm_movehl_ps(v, v)); }
  template <class Index>
  static void gather(const float* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    out[0] = _mm_loadh_pi(load(x + 2 * f.at[0]), reinterpret_cast<const __m64*>(x + 2 * f.at[1]));
    out[1] = _mm_loadh_pi(load(x + 2 * f.at[2]), reinterpret_cast<const __m64*>(x + 2 * f.at[3]));
  }
  template <class Stored>
  static void spread(const Stored* v, reg (&out)[kRegs]) {
    const reg all = four_values(v);
    out[0] = _mm_unpacklo_ps(all, all);
    out[1] = _mm_unpackhi_ps(all, all);
  }
  static void sums(float* out, const reg (&p)[kRegs]) { _mm_storeu_ps(out, _mm_hadd_ps(p[0], p[1])); }
};

template <>
struct Few<float, 4> : Few256 {
  using strip = __m128;
  static constexpr int kRegs = 2;
  static strip load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, strip v) { _mm_storeu_ps(p, v); }
  static strip set1(float v) { return _mm_set1_ps(v); }
  static strip plus(strip a, strip b) { return _mm_add_ps(a, b); }
  static strip times(strip a, strip b) { return _mm_mul_ps(a, b); }
  static strip plus_scaled(strip a, float v, strip b) { return _mm_fmadd_ps(_mm_set1_ps(v), b, a); }
  static reg repeat(strip v) { return both(v, v); }
  static strip fold(reg v) { return unpaired(v); }
  template <class Index>
  static void gather(const float* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    out[0] = both(load(x + 4 * f.at[0]), load(x + 4 * f.at[1]));
    out[1] = both(load(x + 4 * f.at[2]), load(x + 4 * f.at[3]));
  }
  template <class Stored>
  static void spread(const Stored* v, reg (&out)[kRegs]) {
    const reg all = _mm256_castps128_ps256(four_values(v));
    out[0] = _mm256_permutevar8x32_ps(all, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    out[1] = _mm256_permutevar8x32_ps(all, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
  }
  static void sums(float* out, const reg (&p)[kRegs]) {
    reg s = _mm256_hadd_ps(p[0], p[1]);
    s = _mm256_hadd_ps(s, s);
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
  }

 private:
  static reg both(strip a, strip b) { return _mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1); }
};

template <>
struct Few<float, 8> : Few256 {
  using strip = __m256;
  static constexpr int kRegs = 4;
  static strip load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, strip v) { _mm256_storeu_ps(p, v); }
  static strip set1(float v) { return _mm256_set1_ps(v); }
  static strip plus(strip a, strip b) { return _mm256_add_ps(a, b); }
  static strip times(strip a, strip b) { return _mm256_mul_ps(a, b); }
  static strip plus_scaled(strip a, float v, strip b) { return _mm256_fmadd_ps(_mm256_set1_ps(v), b, a); }
  static reg repeat(strip v) { return v; }
  static strip fold(reg v) { return v; }
  template <class Index>
  static void gather(const float* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    for (int i = 0; i < 4; ++i) out[i] = load(x + 8 * f.at[i]);
  }
  template <class Stored>
  static void spread(const Stored* v, reg (&out)[kRegs]) {
    for (int i = 0; i < 4; ++i) out[i] = one_value(v + i);
  }
  static void sums(float* out, const reg (&p)[kRegs]) {
    _mm_storeu_ps(out, unpaired(_mm256_hadd_ps(_mm256_hadd_ps(p[0], p[1]), _mm256_hadd_ps(p[2], p[3]))));
  }
};

template <>
struct Few<double, 1> : Few128d, Single<double> {
  static constexpr int kRegs = 2;
  static reg repeat(strip v) { return _mm_set1_pd(v); }
  static strip fold(reg v) { return _mm_cvtsd_f64(_mm_add_sd(v, _mm_unpackhi_pd(v, v))); }
  template <class Index>
  static void gather(const double* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    out[0] = _mm_loadh_pd(_mm_load_sd(x + f.at[0]), x + f.at[1]);
    out[1] = _mm_loadh_pd(_mm_load_sd(x + f.at[2]), x + f.at[3]);
  }
  static void spread(const double* v, reg (&out)[kRegs]) {
    out[0] = _mm_loadu_pd(v);
    out[1] = _mm_loadu_pd(v + 2);
  }
  static void sums(double* out, const reg (&p)[kRegs]) {
    _mm_storeu_pd(out, p[0]);
    _mm_storeu_pd(out + 2, p[1]);
  }
};

template <>
struct Few<double, 2> : Few256d {
  using strip = __m128d;
  static constexpr int kRegs = 2;
  static strip load(const double* p) { return _mm_loadu_pd(p); }
  static void store(double* p, strip v) { _mm_storeu_pd(p, v); }
  static strip set1(double v) { return _mm_set1_pd(v); }
  static strip plus(strip a, strip b) { return _mm_add_pd(a, b); }
  static strip times(strip a, strip b) { return _mm_mul_pd(a, b); }
  static strip plus_scaled(strip a, double v, strip b) { return _mm_fmadd_pd(_mm_set1_pd(v), b, a); }
  static reg repeat(strip v) { return both(v, v); }
  static strip fold(reg v) { return _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1)); }
  template <class Index>
  static void gather(const double* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    out[0] = both(load(x + 2 * f.at[0]), load(x + 2 * f.at[1]));
    out[1] = both(load(x + 2 * f.at[2]), load(x + 2 * f.at[3]));
  }
  static void spread(const double* v, reg (&out)[kRegs]) {
    const reg all = _mm256_loadu_pd(v);
    out[0] = _mm256_permute4x64_pd(all, 0x50);
    out[1] = _mm256_permute4x64_pd(all, 0xfa);
  }
  static void sums(double* out, const reg (&p)[kRegs]) {
    _mm256_storeu_pd(out, _mm256_permute4x64_pd(_mm256_hadd_pd(p[0], p[1]), 0xd8));
  }

 private:
  static reg both(strip a, strip b) { return _mm256_insertf128_pd(_mm256_castpd128_pd256(a), b, 1); }
};

template <>
struct Few<double, 4> : Few256d {
  using strip = __m256d;
  static constexpr int kRegs = 4;
  static strip load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, strip v) { _mm256_storeu_pd(p, v); }
  static strip set1(double v) { return _mm256_set1_pd(v); }
  static strip plus(strip a, strip b) { return _mm256_add_pd(a, b); }
  static strip times(strip a, strip b) { return _mm256_mul_pd(a, b); }
  static strip plus_scaled(strip a, double v, strip b) { return _mm256_fmadd_pd(_mm256_set1_pd(v), b, a); }
  static reg repeat(strip v) { return v; }
  static strip fold(reg v) { return v; }
  template <class Index>
  static void gather(const double* x, const Index* c, reg (&out)[kRegs]) {
    const Four f = four(c);
    for (int i = 0; i < 4; ++i) out[i] = load(x + 4 * f.at[i]);
  }
  static void spread(const double* v, reg (&out)[kRegs]) {
    for (int i = 0; i < 4; ++i) out[i] = _mm256_set1_pd(v[i]);
  }
  static void sums(double* out, const reg (&p)[kRegs]) {
    const reg a = _mm256_hadd_pd(p[0], p[1]), b = _mm256_hadd_pd(p[2], p[3]);
    _mm256_storeu_pd(out, plus(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31)));
  }
};
