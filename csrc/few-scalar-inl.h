// Few<T, L>: strips of L samples, L less than the lanes of a register, four non-zeros at a time. Used by csr_few-inl.h;
// this version, in the compiler's own vectors, says what the members mean, and few-avx-inl.h follows it.

template <class T, int L>
struct Few;

template <class T, class Strip, int L>
struct FewPlain {
  using strip = Strip;             // one strip
  using reg = Strip;               // the strips of one or more non-zeros, in order
  static constexpr int kRegs = 4;  // registers that hold four strips

  static strip load(const T* p) {  // p needs no alignment
    strip v;
    __builtin_memcpy(&v, p, sizeof(strip));
    return v;
  }
  static void store(T* p, strip v) { __builtin_memcpy(p, &v, sizeof(strip)); }
  static strip set1(T v) { return strip{} + v; }
  static strip plus(strip a, strip b) { return a + b; }
  static strip times(strip a, strip b) { return a * b; }
  static strip plus_scaled(strip a, T v, strip b) { return v * b + a; }

  static reg repeat(strip v) { return v; }  // v as every strip of a register
  static strip fold(reg v) { return v; }    // the sum of the strips in a register
  static reg zero() { return reg{}; }
  static reg add(reg a, reg b) { return a + b; }
  static reg mul(reg a, reg b) { return a * b; }
  static reg fma(reg a, reg b, reg c) { return a * b + c; }

  // The strips c[0] to c[3] of x.
  template <class Index>
  static void gather(const T* x, const Index* c, reg (&out)[kRegs]) {
    for (int i = 0; i < 4; ++i) out[i] = load(x + static_cast<int64_t>(c[i]) * L);
  }
  // Strip i holds v[i] in every lane.
  template <class Stored>
  static void spread(const Stored* v, reg (&out)[kRegs]) {
    for (int i = 0; i < 4; ++i) out[i] = set1(v[i]);
  }
  // out[i] = the sum of strip i.
  static void sums(T* out, const reg (&p)[kRegs]) {
    for (int i = 0; i < 4; ++i) {
      T lanes[L];
      __builtin_memcpy(lanes, &p[i], sizeof(strip));
      out[i] = lanes[0];
      for (int j = 1; j < L; ++j) out[i] += lanes[j];
    }
  }
};

typedef float Pair __attribute__((vector_size(8)));

template <>
struct Few<float, 1> : FewPlain<float, float, 1> {};
template <>
struct Few<float, 2> : FewPlain<float, Pair, 2> {};
template <>
struct Few<double, 1> : FewPlain<double, double, 1> {};
