// The bound is memory: both directions move `numel` and `nnz` elements and one bit for each weight.
//
// A chunk is handled by one of four loops: AVX-512 has the instructions (expand, compress), AVX2 permutes eight values
// by a table of 256 rows, NEON four by one of 16, and plain C++ advances a pointer by each bit. Function attributes
// name the instruction set, since these loops share no inline function with other sources.
#include "expand.h"

#include <array>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu_features.h"
#include "parallel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define LTH_EXPAND_X86 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define LTH_EXPAND_NEON 1
#include <arm_neon.h>
#endif

namespace lth {
namespace {

// Multiply-adds that take as long as moving one weight: what parallel.h counts in.
constexpr double kMoveCost = 4.0;

// One chunk: `count` weights of `dense`, `kept` of `values`.
template <class T>
using Chunk = void (*)(T* values, int64_t kept, const uint8_t* bits, T* dense, int64_t count);

inline bool bit(const uint8_t* bits, int64_t i) { return (bits[i >> 3] >> (i & 7)) & 1; }

template <class T>
void expand_from(int64_t i, T* values, int64_t k, int64_t kept, const uint8_t* bits, T* dense, int64_t count) {
  for (; i < count; ++i) {
    const bool live = bit(bits, i);
    dense[i] = live && k < kept ? values[k] : T{0};
    k += live;
  }
}

template <class T>
void compress_from(int64_t i, T* values, int64_t k, int64_t kept, const uint8_t* bits, const T* dense, int64_t count) {
  for (; i < count && k < kept; ++i) {
    values[k] = dense[i];  // overwritten by the next weight unless this one is kept
    k += bit(bits, i);
  }
}

template <class T>
void expand_plain(T* values, int64_t kept, const uint8_t* bits, T* dense, int64_t count) {
  expand_from(0, values, 0, kept, bits, dense, count);
}

template <class T>
void compress_plain(T* values, int64_t kept, const uint8_t* bits, T* dense, int64_t count) {
  compress_from<T>(0, values, 0, kept, bits, dense, count);
}

#if defined(LTH_EXPAND_X86)

// For every byte: rank[i] = set bits below bit i (where value i comes from), place[k] = the k-th set bit.
struct Permutations {
  alignas(32) std::array<std::array<int32_t, 8>, 256> rank{}, place{};
  Permutations() {
    for (int byte = 0; byte < 256; ++byte) {
      int k = 0;
      for (int i = 0; i < 8; ++i) {
        rank[byte][i] = k;
        if ((byte >> i) & 1) place[byte][k++] = i;
      }
    }
  }
};

const Permutations& permutations() {
  static const Permutations instance;
  return instance;
}

__attribute__((target("avx2"))) void expand_avx2(uint32_t* values, int64_t kept, const uint8_t* bits, uint32_t* dense,
                                                 int64_t count) {
  const Permutations& table = permutations();
  const __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  int64_t i = 0, k = 0;
  for (; i + 8 <= count && k + 8 <= kept; i += 8) {
    const uint8_t byte = bits[i >> 3];
    const __m256i from = _mm256_load_si256(reinterpret_cast<const __m256i*>(table.rank[byte].data()));
    const __m256i spread = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i*>(values + k)), from);
    const __m256i live = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), select), select);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dense + i), _mm256_and_si256(spread, live));
    k += __builtin_popcount(byte);
  }
  expand_from(i, values, k, kept, bits, dense, count);
}

__attribute__((target("avx2"))) void compress_avx2(uint32_t* values, int64_t kept, const uint8_t* bits, uint32_t* dense,
                                                   int64_t count) {
  const Permutations& table = permutations();
  int64_t i = 0, k = 0;
  // A store of eight may reach past the values of this byte, but never past those of the chunk, which are another
  // thread's.
  for (; i + 8 <= count && k + 8 <= kept; i += 8) {
    const uint8_t byte = bits[i >> 3];
    const __m256i from = _mm256_load_si256(reinterpret_cast<const __m256i*>(table.place[byte].data()));
    const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i*>(dense + i)), from);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + k), packed);
    k += __builtin_popcount(byte);
  }
  compress_from<uint32_t>(i, values, k, kept, bits, dense, count);
}

__attribute__((target("avx512f"))) void expand_avx512(uint32_t* values, int64_t kept, const uint8_t* bits, uint32_t* dense,
                                                      int64_t count) {
  int64_t i = 0, k = 0;
  for (; i + 16 <= count; i += 16) {
    const unsigned live = bits[i >> 3] | static_cast<unsigned>(bits[(i >> 3) + 1]) << 8;
    const int found = __builtin_popcount(live);
    // Loading under a mask and expanding in the register: the expanding load is microcoded on some processors.
    const __m512i packed = _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << found) - 1), values + k);
    _mm512_storeu_si512(dense + i, _mm512_maskz_expand_epi32(static_cast<__mmask16>(live), packed));
    k += found;
  }
  expand_from(i, values, k, kept, bits, dense, count);
}

__attribute__((target("avx512f"))) void compress_avx512(uint32_t* values, int64_t kept, const uint8_t* bits,
                                                        uint32_t* dense, int64_t count) {
  int64_t i = 0, k = 0;
  for (; i + 16 <= count; i += 16) {
    const unsigned live = bits[i >> 3] | static_cast<unsigned>(bits[(i >> 3) + 1]) << 8;
    const int found = __builtin_popcount(live);
    // Compressing in the register and storing under a mask: the compressing store is microcoded on some processors.
    const __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(live), _mm512_loadu_si512(dense + i));
    _mm512_mask_storeu_epi32(values + k, static_cast<__mmask16>((1u << found) - 1), packed);
    k += found;
  }
  compress_from<uint32_t>(i, values, k, kept, bits, dense, count);
}

#elif defined(LTH_EXPAND_NEON)

// The same in bytes for four bits, as a table lookup wants it: beyond the set bits kNowhere, which looks up zero.
struct Permutations {
  static constexpr uint8_t kNowhere = 255;
  alignas(16) uint8_t rank[16][16], place[16][16];
  Permutations() {
    for (int nibble = 0; nibble < 16; ++nibble) {
      int k = 0;
      for (int i = 0; i < 16; ++i) rank[nibble][i] = place[nibble][i] = kNowhere;
      for (int i = 0; i < 4; ++i) {
        if (((nibble >> i) & 1) == 0) continue;
        for (int byte = 0; byte < 4; ++byte) {
          rank[nibble][4 * i + byte] = static_cast<uint8_t>(4 * k + byte);
          place[nibble][4 * k + byte] = static_cast<uint8_t>(4 * i + byte);
        }
        ++k;
      }
    }
  }
};

const Permutations& permutations() {
  static const Permutations instance;
  return instance;
}

uint32x4_t look_up(const uint32_t* from, const uint8_t* bytes) {
  return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(vld1q_u32(from)), vld1q_u8(bytes)));
}

void expand_neon(uint32_t* values, int64_t kept, const uint8_t* bits, uint32_t* dense, int64_t count) {
  const Permutations& table = permutations();
  int64_t i = 0, k = 0;
  for (; i + 4 <= count && k + 4 <= kept; i += 4) {
    const int nibble = (bits[i >> 3] >> (i & 4)) & 15;
    vst1q_u32(dense + i, look_up(values + k, table.rank[nibble]));
    k += __builtin_popcount(static_cast<unsigned>(nibble));
  }
  expand_from(i, values, k, kept, bits, dense, count);
}

// A store of four stays within the chunk's values, as in compress_avx2.
void compress_neon(uint32_t* values, int64_t kept, const uint8_t* bits, uint32_t* dense, int64_t count) {
  const Permutations& table = permutations();
  int64_t i = 0, k = 0;
  for (; i + 4 <= count && k + 4 <= kept; i += 4) {
    const int nibble = (bits[i >> 3] >> (i & 4)) & 15;
    vst1q_u32(values + k, look_up(dense + i, table.place[nibble]));
    k += __builtin_popcount(static_cast<unsigned>(nibble));
  }
  compress_from<uint32_t>(i, values, k, kept, bits, dense, count);
}

#endif

template <class T>
Chunk<T> expand_chunk() {
#if defined(LTH_EXPAND_X86)
  if constexpr (sizeof(T) == 4) {
    if (current_isa() == Isa::avx512) return &expand_avx512;
    if (current_isa() == Isa::avx2) return &expand_avx2;
  }
#elif defined(LTH_EXPAND_NEON)
  if constexpr (sizeof(T) == 4) {
    if (current_isa() == Isa::neon) return &expand_neon;
  }
#endif
  return &expand_plain<T>;
}

template <class T>
Chunk<T> compress_chunk() {
#if defined(LTH_EXPAND_X86)
  if constexpr (sizeof(T) == 4) {
    if (current_isa() == Isa::avx512) return &compress_avx512;
    if (current_isa() == Isa::avx2) return &compress_avx2;
  }
#elif defined(LTH_EXPAND_NEON)
  if constexpr (sizeof(T) == 4) {
    if (current_isa() == Isa::neon) return &compress_neon;
  }
#endif
  return &compress_plain<T>;
}

template <class T>
void each_chunk(Chunk<T> chunk, T* values, const uint8_t* bits, const int32_t* rank, T* dense, int64_t numel, int threads) {
  const int64_t chunks = ceil_div(numel, kExpandChunk);
  parallel(useful_threads(threads, kMoveCost * static_cast<double>(numel)), [&](int thread, int team) {
    const Range range = share(chunks, thread, team);
    for (int64_t c = range.begin; c < range.end; ++c) {
      const int64_t at = c * kExpandChunk;
      chunk(values + rank[c], rank[c + 1] - rank[c], bits + at / 8, dense + at, std::min(kExpandChunk, numel - at));
    }
  });
}

// Calls body with a pointer of the unsigned type that is `width` bytes wide.
template <class Body>
void with_width(int width, Body&& body) {
  if (width == 2) return body(static_cast<uint16_t*>(nullptr));
  if (width == 4) return body(static_cast<uint32_t*>(nullptr));
  if (width == 8) return body(static_cast<uint64_t*>(nullptr));
  throw std::invalid_argument("width: expected 2, 4 or 8 bytes, got " + std::to_string(width));
}

}  // namespace

// One loop serves both directions, hence the casts: expand only reads the values, compress only the dense tensor.
void expand(const void* values, const uint8_t* bits, const int32_t* rank, void* dense, int64_t numel, int width,
            int threads) {
  with_width(width, [&](auto* as) {
    using T = std::remove_pointer_t<decltype(as)>;
    each_chunk<T>(expand_chunk<T>(), static_cast<T*>(const_cast<void*>(values)), bits, rank, static_cast<T*>(dense),
                  numel, threads);
  });
}

void compress(const void* dense, const uint8_t* bits, const int32_t* rank, void* values, int64_t numel, int width,
              int threads) {
  with_width(width, [&](auto* as) {
    using T = std::remove_pointer_t<decltype(as)>;
    each_chunk<T>(compress_chunk<T>(), static_cast<T*>(values), bits, rank, static_cast<T*>(const_cast<void*>(dense)),
                  numel, threads);
  });
}

}  // namespace lth
