// See cpu_features.h. The choice lives in one atomic, so that set_isa may be called while kernels run.
#include "cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace lth {
namespace {

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && runs_here(Isa::avx2);
  }
#endif
#if defined(__aarch64__)
  if (isa == Isa::neon) return true;  // part of the architecture
#endif
  return isa == Isa::scalar;
}

std::string choices() {
  std::string text;
  for (Isa isa : runnable_isas()) text += (text.empty() ? "" : ", ") + name_of(isa);
  return text;
}

// Returns true and the instruction set if `name` is one that runs here.
bool find(const std::string& name, Isa* found) {
  for (Isa isa : runnable_isas()) {
    if (name_of(isa) == name) {
      *found = isa;
      return true;
    }
  }
  return false;
}

struct Choice {
  std::string rejected;  // what LTH_SPARSE_ISA said, if that cannot be had
  std::atomic<bool> usable{true};
  std::atomic<Isa> isa{Isa::scalar};

  Choice() {
    isa = runnable_isas().back();
    const char* wanted = std::getenv("LTH_SPARSE_ISA");
    if (wanted == nullptr || *wanted == '\0') return;
    Isa found;
    if (find(wanted, &found)) {
      isa = found;
    } else {
      rejected = wanted;
      usable = false;
    }
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

std::string name_of(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::neon:
      return "neon";
    default:
      return "scalar";
  }
}

std::vector<Isa> built_isas() {
#if defined(__x86_64__)
  return {Isa::scalar, Isa::avx2, Isa::avx512};
#elif defined(__aarch64__)
  return {Isa::scalar, Isa::neon};
#else
  return {Isa::scalar};
#endif
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> result;
  for (Isa isa : built_isas()) {
    if (runs_here(isa)) result.push_back(isa);
  }
  return result;
}

bool multiplies_bf16() {
#if defined(__x86_64__)
  return runs_here(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa current_isa() {
  const Choice& c = choice();
  if (!c.usable.load(std::memory_order_relaxed)) {
    throw std::runtime_error("LTH_SPARSE_ISA: expected one of " + choices() + ", got '" + c.rejected + "'");
  }
  return c.isa.load(std::memory_order_relaxed);
}

void set_isa(const std::string& name) {
  Isa found;
  if (!find(name, &found)) {
    throw std::invalid_argument("isa: expected one of " + choices() + ", got '" + name + "'");
  }
  choice().isa = found;
  choice().usable = true;
}

}  // namespace lth
