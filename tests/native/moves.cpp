// expand and compress: every width, sizes around the ends of bytes and chunks, from empty to full, bit for bit.
#include "expand.h"
#include "harness.h"

namespace lth {
namespace test {
namespace {

template <class T>
void check(int64_t numel, double density, int seed) {
  Random random(static_cast<uint64_t>(seed));
  const Array<uint8_t> bits((numel + 7) / 8);
  std::memset(bits.data(), 0, static_cast<size_t>(bits.size()));
  std::vector<int32_t> rank;
  std::vector<char> mask;
  int32_t kept = 0;
  for (int64_t i = 0; i < numel; ++i) {
    if (i % kExpandChunk == 0) rank.push_back(kept);
    mask.push_back(0.5 * (random.uniform() + 1.0) < density);
    if (!mask.back()) continue;
    bits[i >> 3] = static_cast<uint8_t>(bits[i >> 3] | 1 << (i & 7));
    ++kept;
  }
  rank.push_back(kept);
  const Array<int32_t> ranks(rank);
  const Array<T> values(kept), dense(numel);
  for (int64_t i = 0; i < kept; ++i) values[i] = static_cast<T>(random.bits());
  for (int64_t i = 0; i < numel; ++i) dense[i] = static_cast<T>(random.bits());
  each_isa([&](const char* isa) {
    for (int threads = 1; threads <= 3; ++threads) {
      begin_case("expand and compress %s numel %d density %g width %d threads %d", isa, int(numel), density,
                 int(sizeof(T)), threads);
      const Array<T> expanded(numel), compressed(kept);
      expand(values.data(), bits.data(), ranks.data(), expanded.data(), numel, sizeof(T), threads);
      compress(dense.data(), bits.data(), ranks.data(), compressed.data(), numel, sizeof(T), threads);
      for (int64_t i = 0, k = 0; i < numel; ++i) {
        const bool live = mask[static_cast<size_t>(i)];
        expect_equal(expanded[i], live ? values[k] : T(0), "dense", i);
        if (live) expect_equal(compressed[k], dense[i], "values", k);
        k += live;
      }
    }
  });
}

}  // namespace

void moves_part() {
  int seed = 1;
  for (int64_t numel : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 4095, 4096, 4097, 4103, 13001}) {
    for (double density : {0.0, 0.05, 0.5, 0.95, 1.0}) {
      check<uint16_t>(numel, density, seed);
      check<uint32_t>(numel, density, seed);
      check<uint64_t>(numel, density, seed++);
    }
  }
}

}  // namespace test
}  // namespace lth
