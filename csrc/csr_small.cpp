// Forward: pack x unless it is a strip, then this thread's rows. Backward, strip by strip: pack dy and x likewise, then
// this thread's rows, dw going straight to its place and dx to a copy of this thread's own; last, the copies are added
// up in the order of the threads.
#include "csr_small.h"

#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {
namespace {

constexpr int64_t kRowCost = 8;            // a row's own cost, in non-zeros: summing and storing its accumulators
constexpr int64_t kNonZeroWork = 8;        // a non-zero's cost in multiply-adds of wide strips, for any few samples
constexpr int64_t kAheadBytes = 12 << 20;  // a pass over more than this finds little of it in a cache

// Bytes of a feature (batch times element) up to which the gradients are found row by row. In the order of columns a
// non-zero costs two accesses through the permutation more, and those are dear once what it permutes leaves the
// L2 cache; row by row it costs another load and store of a strip.
constexpr int64_t kRowsBytes = 64;
constexpr int64_t kRowsBytesLarge = 192;
constexpr int64_t kPermutedBytes = 1 << 20;

int64_t few_lanes(int64_t batch) {
  int64_t lanes = 1;
  while (lanes < batch) lanes *= 2;
  return lanes;
}

bool from_memory(int64_t nnz, size_t bytes) { return nnz * static_cast<int64_t>(bytes) > kAheadBytes; }

int useful(int threads, int64_t nnz, int64_t rows) {
  return useful_threads(threads, static_cast<double>(kNonZeroWork) * static_cast<double>(nnz + kRowCost * rows));
}

Range rows_of(const int32_t* crow, int64_t rows, int thread, int team) {
  const int64_t weight = crow[rows] + kRowCost * rows, align = cut_alignment(rows, team);
  const auto cut = [&](int part) { return row_at(crow, rows, kRowCost, weight * part / team, align); };
  return {cut(thread), cut(thread + 1)};
}

template <class S, class Index>
void (*few_of(int64_t lanes))(const FewArgs<Compute<S>, Index, S>&) {
  if constexpr (!std::is_same_v<S, Bf16>)
    return kernels<S>().template indexed<Index>().few[lanes];
  else if constexpr (std::is_same_v<Index, uint16_t>)
    return bf16_kernels().few_u16[lanes];
  else
    return bf16_kernels().few_i32[lanes];
}

// x where it is a strip as it stands, which only what has the type of a strip can be, else what it was packed to.
template <class T>
const T* strip(const T* x, const T* packed, bool as_it_stands) {
  return as_it_stands ? x : packed;
}
inline const float* strip(const Bf16*, const float* packed, bool) { return packed; }

}  // namespace

template <class T>
bool takes_few(int64_t batch) {
  return 2 * batch <= kernels<T>().lanes;
}

template <class T>
bool takes_rows(int64_t batch, int64_t nnz) {
  const int64_t bytes = sizeof(T), permuted = nnz * (bytes + static_cast<int64_t>(sizeof(int32_t)));
  return batch * bytes <= (permuted > kPermutedBytes ? kRowsBytesLarge : kRowsBytes);
}

template <class S, class Index>
void csr_few_forward(const LinearSizes& sizes, const S* x, Strides xs, const S* values, const S* bias, S* y,
                     Strides ys, const int32_t* crow, const Index* col, bool relu, int threads) {
  using T = Compute<S>;
  const Kernels<T>& k = kernels<T>();
  const int64_t lanes = few_lanes(sizes.batch), nnz = crow[sizes.rows];
  const Tiling t(sizes.batch, lanes, 1);
  constexpr bool kSame = std::is_same_v<S, T>;
  const bool read_x = kSame && is_strip(sizes.batch, xs, lanes);
  const bool write_y = kSame && is_strip(sizes.batch, ys, lanes);
  const auto few = few_of<S, Index>(lanes);
  const bool ahead = from_memory(nnz, sizeof(S) + sizeof(Index));
  threads = useful(threads, nnz, sizes.rows);

  Plan plan;
  const size_t packed_at = plan.add<T>(read_x ? 0 : sizes.cols * lanes);
  const size_t out_at = plan.add<T>(write_y ? 0 : kChunk * lanes, threads);
  const Scratch scratch(plan);
  T* const packed = scratch.at<T>(packed_at);

  parallel(threads, [&](int thread, int team) {
    if (!read_x) {
      pack_share(k, x, xs, sizes.batch, t, 0, 1, sizes.cols, packed, thread, team);
      barrier(team);
    }
    const Range mine = rows_of(crow, sizes.rows, thread, team);
    const auto run = [&](int64_t r, int64_t count, T* out) {
      few({strip(x, packed, read_x), col, values, crow + r, crow + r + 1, count, bias == nullptr ? nullptr : bias + r,
           ahead, out});
      if (relu) apply_relu(out, count * lanes);
    };
    if constexpr (kSame) {
      if (write_y) {
        run(mine.begin, mine.end - mine.begin, y + mine.begin * lanes);
        return;
      }
    }
    T* const out = scratch.at<T>(out_at, kChunk * lanes, thread);
    for (int64_t r = mine.begin; r < mine.end; r += kChunk) {
      const int64_t count = std::min(kChunk, mine.end - r);
      run(r, count, out);
      unpack(k, out, count, y, ys, sizes.batch, t, 0, r);
    }
  });
}

template <class T, class Index>
void csr_rows_backward(const LinearSizes& sizes, const Gradient<T>& grad, const T* x, Strides xs, const T* values,
                       T* dx, Strides dxs, T* dvalues, T* dbias, const int32_t* crow, const Index* col, int threads) {
  const Kernels<T>& k = kernels<T>();
  const int64_t nnz = crow[sizes.rows];
  const bool few = takes_few<T>(sizes.batch);
  const Tiling t(sizes.batch, few ? few_lanes(sizes.batch) : k.lanes, few ? 1 : k.scatter_tile);
  const auto& ops = k.template indexed<Index>();
  const auto scatter = few ? ops.fewgrad[t.lanes] : ops.scatter[t.tile];
  const bool dw = dvalues != nullptr;
  const bool read_grad = is_strip(sizes.batch, grad, t.lanes), read_x = !dw || is_strip(sizes.batch, xs, t.lanes);
  const bool ahead = from_memory(nnz, (dw ? 2 : 1) * sizeof(T) + sizeof(Index));
  const int64_t copy = sizes.cols * t.lanes;
  // Adding up a thread's copy of dx must stay cheap beside its share of the non-zeros.
  const int64_t copies = dx == nullptr ? threads : std::max<int64_t>(1, nnz / std::max<int64_t>(1, 2 * sizes.cols));
  threads = useful(static_cast<int>(std::min<int64_t>(threads, copies)), 2 * nnz * t.strips, sizes.rows);

  Plan plan;
  const size_t grad_at = plan.add<T>(read_grad ? 0 : sizes.rows * t.lanes);
  const size_t x_at = plan.add<T>(read_x ? 0 : copy);
  const size_t dx_at = plan.add<T>(dx != nullptr ? copy : 0, threads);
  const size_t gate_at = plan.add<T>(gate_size(grad, t), threads);
  const Scratch scratch(plan);
  T* const packed_grad = scratch.at<T>(grad_at);
  T* const packed_x = scratch.at<T>(x_at);
  const T* const g = read_grad ? grad.data : packed_grad;

  parallel(threads, [&](int thread, int team) {
    const Range mine = rows_of(crow, sizes.rows, thread, team);
    T* const gate = scratch.at<T>(gate_at, gate_size(grad, t), thread);
    T* const own = dx == nullptr ? nullptr : scratch.at<T>(dx_at, copy, thread);
    for (int64_t strip = 0; strip < t.strips; ++strip) {
      if (strip > 0) barrier(team);
      if (!read_grad) pack_share(k, grad, sizes.batch, t, strip, 1, sizes.rows, packed_grad, gate, thread, team);
      if (!read_x) pack_share(k, x, xs, sizes.batch, t, strip, 1, sizes.cols, packed_x, thread, team);
      if (dx != nullptr) std::memset(own, 0, static_cast<size_t>(copy) * sizeof(T));
      if (!read_grad || !read_x) barrier(team);

      if (dbias != nullptr) {
        for (int64_t r = mine.begin; r < mine.end; ++r) {
          dbias[r] = (strip > 0 ? dbias[r] : T(0)) + k.sum(g + r * t.lanes, t.lanes);
        }
      }
      if (!dw && dx == nullptr) continue;
      scatter({read_x ? x : packed_x, g + mine.begin * t.lanes, col, values, crow + mine.begin, crow + mine.begin + 1,
               mine.end - mine.begin, ahead, strip > 0, own, dvalues});
      if (dx == nullptr) continue;

      barrier(team);
      const Range blocks = share(ceil_div(sizes.cols, kChunk), thread, team);
      const int64_t first = blocks.begin * kChunk, last = std::min(sizes.cols, blocks.end * kChunk);
      T* const total = scratch.at<T>(dx_at);
      for (int other = 1; other < team; ++other) {
        const T* const part = scratch.at<T>(dx_at, copy, other);
        for (int64_t i = first * t.lanes; i < last * t.lanes; ++i) total[i] += part[i];
      }
      unpack(k, total + first * t.lanes, last - first, dx, dxs, sizes.batch, t, strip, first);
    }
  });
}

template bool takes_few<float>(int64_t);
template bool takes_few<double>(int64_t);
template bool takes_rows<float>(int64_t, int64_t);
template bool takes_rows<double>(int64_t, int64_t);

#define LTH_INSTANTIATE_FORWARD(S, Index)                                                                          \
  template void csr_few_forward<S, Index>(const LinearSizes&, const S*, Strides, const S*, const S*, S*, Strides, \
                                          const int32_t*, const Index*, bool, int);
#define LTH_INSTANTIATE(T, Index)                                                                                   \
  LTH_INSTANTIATE_FORWARD(T, Index)                                                                                 \
  template void csr_rows_backward<T, Index>(const LinearSizes&, const Gradient<T>&, const T*, Strides, const T*, T*, \
                                            Strides, T*, T*, const int32_t*, const Index*, int);
LTH_INSTANTIATE(float, uint16_t)
LTH_INSTANTIATE(float, int32_t)
LTH_INSTANTIATE(double, uint16_t)
LTH_INSTANTIATE(double, int32_t)
LTH_INSTANTIATE_FORWARD(Bf16, uint16_t)
LTH_INSTANTIATE_FORWARD(Bf16, int32_t)

}  // namespace lth
