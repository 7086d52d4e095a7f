// See peak.h. Independent chains of multiply-adds, more than latency times units, in registers alone.
//
// Each instruction set has one function with a target attribute and calls nothing inside it, so that no inline function
// shared with other files is compiled for it.
#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu_features.h"
#include "parallel.h"

namespace lth {
namespace {

// The compiler's vectors: `*` and `+` become one fused instruction where the target has it, else two.
typedef float Reg16 __attribute__((vector_size(16)));
typedef float Reg32 __attribute__((vector_size(32)));
typedef float Reg64 __attribute__((vector_size(64)));

// Twelve chains keep two units of a latency up to six busy. Each is a variable of its own: an array would go to memory.
// The empty asm keeps the compiler from seeing through the loop.
constexpr int64_t kChains = 12;
#define LTH_EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define LTH_START(i) Reg a##i = s;
#define LTH_STEP(i)    \
  a##i = a##i * m + s; \
  asm volatile("" : "+" LTH_REGISTER(a##i));
#define LTH_ADD(i) sum += a##i;
#define LTH_BODY                                  \
  const Reg m = Reg{} + scale, s = Reg{} + shift; \
  LTH_EACH(LTH_START)                             \
  for (int64_t step = 0; step < steps; ++step) {  \
    LTH_EACH(LTH_STEP)                            \
  }                                               \
  Reg sum{};                                      \
  LTH_EACH(LTH_ADD)                               \
  return sum[0];

#if defined(__x86_64__)
#define LTH_REGISTER(v) "v"(v)
__attribute__((target("avx512f"))) float chains_avx512(int64_t steps, float scale, float shift) {
  typedef Reg64 Reg;
  LTH_BODY
}
__attribute__((target("avx2,fma"))) float chains_avx2(int64_t steps, float scale, float shift) {
  typedef Reg32 Reg;
  LTH_BODY
}
#undef LTH_REGISTER
#define LTH_REGISTER(v) "x"(v)
#else
#define LTH_REGISTER(v) "w"(v)
#endif
float chains_scalar(int64_t steps, float scale, float shift) {
  typedef Reg16 Reg;
  LTH_BODY
}
#undef LTH_REGISTER
#undef LTH_BODY
#undef LTH_ADD
#undef LTH_STEP
#undef LTH_START
#undef LTH_EACH

struct Peak {
  float (*run)(int64_t steps, float scale, float shift);
  int64_t flops;  // of one step
};

Peak peak_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return {chains_avx512, 2 * 16 * kChains};
  if (isa == Isa::avx2) return {chains_avx2, 2 * 8 * kChains};
#else
  (void)isa;
#endif
  return {chains_scalar, 2 * 4 * kChains};
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double fma_peak(double seconds, int threads) {
  const Peak peak = peak_of(current_isa());
  // Values stay near 1: neither denormal nor infinite numbers, which some processors are slow with.
  constexpr float kScale = 0.5f, kShift = 0.5f;
  int64_t steps = 1 << 10;
  for (double took = 0; took < 1e-3; steps *= 2) {  // also lets the clock frequency rise
    const double start = now();
    volatile float sink = peak.run(steps, kScale, kShift);
    (void)sink;
    took = now() - start;
  }
  const double end = now() + seconds;
  // Every thread measures its own windows: one that is interrupted spoils one window of its own, and no waiting counts.
  std::vector<double> rates(static_cast<size_t>(threads), 0.0);
  parallel(threads, [&](int thread, int) {
    do {
      const double start = now();
      volatile float sink = peak.run(steps, kScale, kShift);
      (void)sink;
      const double rate = static_cast<double>(steps) * static_cast<double>(peak.flops) / (now() - start);
      rates[static_cast<size_t>(thread)] = std::max(rates[static_cast<size_t>(thread)], rate);
    } while (now() < end);
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace lth
