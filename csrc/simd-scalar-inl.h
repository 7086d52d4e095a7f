// The instruction set every machine has: 16-byte vectors in the compiler's own vector extension, so that it becomes
// SSE2 on x86-64 and NEON on AArch64 without an intrinsic. It also says what the members of Vec mean; the other
// simd-*-inl.h follow it.

template <class T>
struct Reg;
template <>
struct Reg<float> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct Reg<double> {
  typedef double type __attribute__((vector_size(16)));
};

template <class T>
struct Vec {
  using reg = typename Reg<T>::type;
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kRegisters = 16;  // that kernels may count on
  static constexpr int kBackwardTile = 4;  // widest strip of the backward kernels that does not spill registers

  static reg zero() { return reg{}; }
  static reg set1(T v) { return reg{} + v; }
  static reg load(const T* p) {  // p needs no alignment
    reg v;
    __builtin_memcpy(&v, p, sizeof(reg));
    return v;
  }
  static void store(T* p, reg v) { __builtin_memcpy(p, &v, sizeof(reg)); }
  static reg load_part(const T* p, int n) {  // n values (0 <= n <= kLanes), then zeros; reads nothing beyond them
    reg v{};
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static reg load_between(const T* p, int from, int to) {  // zero outside of lanes [from, to), and nothing read there
    reg v{};
    for (int i = from; i < to; ++i) v[i] = p[i];
    return v;
  }
  static void store_part(T* p, reg v, int n) {  // the first n values; writes nothing beyond them
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
  static reg keep(reg v) {
    return v;
  }  // v in a register: stops a load from being repeated as the operand of two instructions
  static reg add(reg a, reg b) { return a + b; }
  static reg fma(reg a, reg b, reg c) { return a * b + c; }
  static reg even(reg a, reg b) {  // lanes 0, 2, 4, ... of a followed by b
    reg v{};
    for (int i = 0; i < kLanes / 2; ++i) v[i] = a[2 * i], v[kLanes / 2 + i] = b[2 * i];
    return v;
  }
  static reg relu(reg v) {  // max(v, 0); NaN stays NaN
    for (int i = 0; i < kLanes; ++i) v[i] = v[i] < 0 ? 0 : v[i];
    return v;
  }
  static reg gate(reg v, reg activated) {  // v where a ReLU that gave `activated` passes a gradient on, which NaN does
    for (int i = 0; i < kLanes; ++i) v[i] = activated[i] <= 0 ? 0 : v[i];
    return v;
  }
  static T sum(reg v) {
    T s = v[0];
    for (int i = 1; i < kLanes; ++i) s += v[i];
    return s;
  }

  static void add_sums(T* out, const reg (&p)[4], int n = 4) {  // out[i] += sum(p[i]) for i < n, 0 < n <= 4
    for (int i = 0; i < n; ++i) out[i] += sum(p[i]);
  }

  static void transpose(reg (&r)[kLanes]) {  // kLanes x kLanes values, in place
    for (int i = 0; i < kLanes; ++i) {
      for (int j = i + 1; j < kLanes; ++j) {
        const T t = r[i][j];
        r[i][j] = r[j][i];
        r[j][i] = t;
      }
    }
  }
};
