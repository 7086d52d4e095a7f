// NEON (AArch64): Vec<float> of 4 lanes and Vec<double> of 2. Included inside a namespace; see kernels-neon.cpp. The
// same members in simd-avx2-inl.h and simd-avx512-inl.h; what each means is written in simd-scalar-inl.h.

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using reg = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 32;
  static constexpr int kBackwardTile = 8;  // 8 of x, 8 of dx, 4 sums, the strip read and its value: 22 of 32 registers

  static reg zero() { return vdupq_n_f32(0); }
  static reg set1(float v) { return vdupq_n_f32(v); }
  static reg load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, reg v) { vst1q_f32(p, v); }
  static reg load_part(const float* p, int n) {
    if (n >= 4) return load(p);
    if (n < 2) return n == 1 ? vld1q_lane_f32(p, zero(), 0) : zero();
    const reg v = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
    return n == 3 ? vld1q_lane_f32(p + 2, v, 2) : v;
  }
  static reg load_between(const float* p, int from, int to) {
    reg v = zero();
    for (int i = from; i < to; ++i) v[i] = p[i];
    return v;
  }
  static void store_part(float* p, reg v, int n) {
    if (n >= 4) return store(p, v);
    if (n >= 2) vst1_f32(p, vget_low_f32(v));
    if (n == 3) vst1q_lane_f32(p + 2, v, 2);
    if (n == 1) vst1q_lane_f32(p, v, 0);
  }
  static reg keep(reg v) {
    asm("" : "+w"(v));
    return v;
  }
  static reg add(reg a, reg b) { return vaddq_f32(a, b); }
  static reg fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
  static reg even(reg a, reg b) { return vuzp1q_f32(a, b); }
  static reg relu(reg v) { return vmaxq_f32(v, zero()); }  // of a NaN and zero NaN
  static reg gate(reg v, reg activated) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcleq_f32(activated, zero())));
  }
  static float sum(reg v) { return vaddvq_f32(v); }

  static void add_sums(float* out, const reg (&p)[4], int n = 4) {
    const reg s = vpaddq_f32(vpaddq_f32(p[0], p[1]), vpaddq_f32(p[2], p[3]));
    store_part(out, add(load_part(out, n), s), n);
  }

  static void transpose(reg (&r)[4]) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1]));  // of columns 0 and 2, rows 0 and 1
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));  // columns 1 and 3
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
  }
};

template <>
struct Vec<double> {
  using reg = float64x2_t;
  static constexpr int kLanes = 2;
  static constexpr int kRegisters = 32;
  static constexpr int kBackwardTile = 8;

  static reg zero() { return vdupq_n_f64(0); }
  static reg set1(double v) { return vdupq_n_f64(v); }
  static reg load(const double* p) { return vld1q_f64(p); }
  static void store(double* p, reg v) { vst1q_f64(p, v); }
  static reg load_part(const double* p, int n) {
    if (n >= 2) return load(p);
    return n == 1 ? vld1q_lane_f64(p, zero(), 0) : zero();
  }
  static reg load_between(const double* p, int from, int to) {
    reg v = zero();
    for (int i = from; i < to; ++i) v[i] = p[i];
    return v;
  }
  static void store_part(double* p, reg v, int n) {
    if (n >= 2) return store(p, v);
    if (n == 1) vst1q_lane_f64(p, v, 0);
  }
  static reg keep(reg v) {
    asm("" : "+w"(v));
    return v;
  }
  static reg add(reg a, reg b) { return vaddq_f64(a, b); }
  static reg fma(reg a, reg b, reg c) { return vfmaq_f64(c, a, b); }
  static reg even(reg a, reg b) { return vuzp1q_f64(a, b); }
  static reg relu(reg v) { return vmaxq_f64(v, zero()); }  // of a NaN and zero NaN
  static reg gate(reg v, reg activated) {
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(v), vcleq_f64(activated, zero())));
  }
  static double sum(reg v) { return vaddvq_f64(v); }

  static void add_sums(double* out, const reg (&p)[4], int n = 4) {
    store_part(out, add(load_part(out, n), vpaddq_f64(p[0], p[1])), n);
    if (n > 2) store_part(out + 2, add(load_part(out + 2, n - 2), vpaddq_f64(p[2], p[3])), n - 2);
  }

  static void transpose(reg (&r)[2]) {
    const reg low = vtrn1q_f64(r[0], r[1]);
    r[1] = vtrn2q_f64(r[0], r[1]);
    r[0] = low;
  }
};
