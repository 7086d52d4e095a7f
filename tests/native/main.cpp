// The C++ side of the library by itself, against plain loops in double precision: every microkernel and every driver of
// every instruction set that this build has and this processor (or emulator) runs.
//
//     native_test [part ...]        all parts, or those named; exit status 0 when every check held
#include <cstdio>
#include <cstring>

#include "harness.h"
#include "parallel.h"

int main(int count, char** arguments) {
  using namespace lth::test;
  const struct {
    const char* name;
    void (*run)();
  } parts[] = {{"microkernels", &microkernels_part},
               {"linear", &linear_part},
               {"bsr_linear", &bsr_linear_part},
               {"conv", &conv_part},
               {"bsr_conv", &bsr_conv_part},
               {"bf16", &bf16_part},
               {"moves", &moves_part},
               {"permute", &permute_part},
               {"reorder", &reorder_part},
               {"rebuild", &rebuild_part},
               {"concurrency", &concurrency_part}};
  lth::thread_grain() = 1;  // even the smallest work is shared
  int ran = 0;
  for (const auto& part : parts) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted |= std::strcmp(arguments[i], part.name) == 0;
    if (!wanted) continue;
    const int64_t before = cases(), failed = failures();
    part.run();
    ++ran;
    std::printf("%-12s  %6lld cases  %lld failed checks\n", part.name, static_cast<long long>(cases() - before),
                static_cast<long long>(failures() - failed));
    std::fflush(stdout);
  }
  if (ran < (count == 1 ? 1 : count - 1)) {
    std::fprintf(stderr, "native_test: no such part\n");
    return 2;
  }
  std::printf("instruction sets:");
  for (lth::Isa isa : lth::runnable_isas()) std::printf(" %s", lth::name_of(isa).c_str());
#if defined(LTH_OPENMP)
  std::printf("; threads: OpenMP\n");
#else
  std::printf("; threads: std\n");
#endif
  return failures() == 0 ? 0 : 1;
}
