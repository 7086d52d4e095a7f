// Memory<S>: registers of Vec loaded from and stored to arrays of S, which is what registers hold or, for float, also
// Bf16. Members as in Vec. Written in the compiler's own vectors: widening is a shift, and rounding a few integer
// operations, in every instruction set.

template <class S>
struct Memory : Vec<S> {};

template <>
struct Memory<Bf16> {
  using V = Vec<float>;
  using reg = V::reg;
  static constexpr int kLanes = V::kLanes;
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

  static reg load(const Bf16* p) {
    Halves h;
    __builtin_memcpy(&h, p, sizeof h);
    return widen(h);
  }
  static reg load_part(const Bf16* p, int n) {
    if (n >= kLanes) return load(p);
    Halves h{};
    for (int i = 0; i < n; ++i) h[i] = p[i].bits;
    return widen(h);
  }
  static void store(Bf16* p, reg v) {
    const Halves h = narrow(v);
    __builtin_memcpy(p, &h, sizeof h);
  }
  static void store_part(Bf16* p, reg v, int n) {
    if (n >= kLanes) return store(p, v);
    const Halves h = narrow(v);
    for (int i = 0; i < n; ++i) p[i].bits = h[i];
  }

 private:
  static reg widen(Halves h) { return (reg)(__builtin_convertvector(h, Bits) << 16); }
  static Halves narrow(reg v) {  // a NaN keeps its upper half and stays one
    const Bits b = (Bits)v, high = b >> 16;
    const Bits is_nan = (Bits)((b & 0x7fffffffu) > 0x7f800000u);
    const Bits rounded = (b + 0x7fffu + (high & 1u)) >> 16;
    return __builtin_convertvector((is_nan & (high | 0x40u)) | (~is_nan & rounded), Halves);
  }
};
