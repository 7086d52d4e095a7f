// See harness.h.
#include "harness.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "scratch.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LTH_NO_FENCES 1
#endif

namespace lth {
namespace test {
namespace {

constexpr int64_t kPrinted = 20;
constexpr unsigned char kSlack = 0xa5;

std::atomic<int64_t> case_count{0}, failure_count{0};
thread_local char the_case[256] = "no case";

[[maybe_unused]] void on_signal(int number) {
  char text[400];
  const int length = std::snprintf(text, sizeof(text), "FAILED %s: signal %d\n", the_case, number);
  if (write(STDERR_FILENO, text, static_cast<size_t>(length)) < 0) _exit(3);
  _exit(2);
}

[[maybe_unused]] void catch_signals() {
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) signal(number, on_signal);
}

#if !defined(LTH_NO_FENCES)
const bool signals_are_caught = (catch_signals(), true);
#endif

}  // namespace

void begin_case(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(the_case, sizeof(the_case), format, arguments);
  va_end(arguments);
  ++case_count;
}

void fail(const char* format, ...) {
  if (++failure_count > kPrinted) return;
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "FAILED %s: %s\n", the_case, text);
}

int64_t cases() { return case_count; }
int64_t failures() { return failure_count; }

#if defined(LTH_NO_FENCES)

Fenced::Fenced(size_t size) : bytes(size), mapped(0), map(nullptr) {
  data = static_cast<unsigned char*>(std::malloc(bytes));
  if (data == nullptr && bytes > 0) std::abort();
  poison();
}

Fenced::~Fenced() { std::free(data); }

#else

Fenced::Fenced(size_t size) : bytes(size) {
  static std::atomic<unsigned> turn{0};
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inside = (bytes + page - 1) / page * page;
  mapped = inside + 2 * page;
  void* const got = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got == MAP_FAILED) std::abort();
  map = static_cast<unsigned char*>(got);
  if (inside > 0 && mprotect(map + page, inside, PROT_READ | PROT_WRITE) != 0) std::abort();
  data = map + page + (turn++ % 3 == 0 ? 0 : inside - bytes);
  if (inside > 0) std::memset(map + page, kSlack, inside);
  poison();
}

Fenced::~Fenced() {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const unsigned char* const begin = map + page;
  const unsigned char* const end = map + mapped - page;
  for (const unsigned char* p = begin; p < end; ++p) {
    if (p == data) p += bytes;
    if (p < end && *p != kSlack) {
      fail("memory %s an array was written", p < data ? "before" : "after");
      break;
    }
  }
  munmap(map, mapped);
}

#endif

void Fenced::poison() {
  if (bytes > 0) std::memset(data, 0xff, bytes);
}

std::vector<char> random_mask(Random& random, int64_t rows, int64_t cols, double density) {
  std::vector<char> mask(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t kind = random.below(8);
    for (int64_t c = 0; c < cols; ++c) {
      const bool kept = 0.5 * (random.uniform() + 1.0) < density;
      mask[static_cast<size_t>(r * cols + c)] = density > 0 && density < 1 && kind < 2 ? kind == 1 : kept;
    }
  }
  return mask;
}

void poison_scratch() {
  constexpr int64_t kBytes = 1 << 18;
  Plan plan;
  const size_t at = plan.add<unsigned char>(kBytes);
  const Scratch scratch(plan);
  std::memset(scratch.at<unsigned char>(at), 0xff, kBytes);
}

}  // namespace test
}  // namespace lth
