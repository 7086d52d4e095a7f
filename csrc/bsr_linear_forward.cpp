// Forward: pack x, then bsr_spmm over this thread's block rows in every strip, unpacking y as it appears. A round is as
// many strips as fit the scratch memory. A few samples would leave most lanes of a strip empty: they are taken one by
// one, with lanes along the blocks.
#include <cstring>

#include "bsr_linear.h"
#include "bsr_product.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {

namespace {

constexpr int64_t kFewSamples = 3;
constexpr int64_t kFewRowsAtOnce = 32;

// `bias` with zeros for the rows beyond the edge of the weight.
template <class T>
void pad_bias(const T* bias, int64_t rows, int64_t padded, T* to) {
  std::copy(bias, bias + rows, to);
  std::fill(to + rows, to + padded, T(0));
}

template <class S>
void (*gemv_of())(const BsrGemvArgs<Compute<S>, S>&) {
  return kernels<S>().bsr_gemv;
}
template <>
void (*gemv_of<Bf16>())(const BsrGemvArgs<float, Bf16>&) {
  return bf16_kernels().bsr_gemv;
}

}  // namespace

bool bsr_takes_few(int64_t batch, int64_t r, int64_t c) {
  return batch <= kFewSamples && (c >= 4 || (c == 1 && r >= 4));
}

template <class S>
void bsr_few_forward(const LinearSizes& sizes, const S* x, Strides xs, const BsrWeight<S>& w, const S* bias, S* y,
                     Strides ys, bool relu, int threads) {
  using T = Compute<S>;
  const auto gemv = gemv_of<S>();
  const int64_t block_rows = ceil_div(sizes.rows, w.r), padded_rows = block_rows * w.r;
  const int64_t padded_cols = round_up(sizes.cols, w.c), blocks = w.crow[block_rows], weights = blocks * w.r * w.c;
  threads = useful_threads(threads, static_cast<double>(weights * sizes.batch));

  Plan plan;
  const size_t x_at = plan.add<T>(padded_cols * sizes.batch);
  const size_t y_at = plan.add<T>(padded_rows * sizes.batch);
  const size_t bias_at = plan.add<S>(bias != nullptr ? padded_rows : 0);
  const size_t values_at = plan.add<S>(w.mask != nullptr ? weights : 0);
  const Scratch scratch(plan);
  T* const packed = scratch.at<T>(x_at);
  T* const out = scratch.at<T>(y_at);
  for (int64_t n = 0; n < sizes.batch; ++n) {
    T* const to = packed + n * padded_cols;
    for (int64_t i = 0; i < sizes.cols; ++i) to[i] = static_cast<T>(x[n * xs.batch + i * xs.feature]);
    std::fill(to + sizes.cols, to + padded_cols, T(0));
  }
  if (bias != nullptr) pad_bias(bias, sizes.rows, padded_rows, scratch.at<S>(bias_at));

  parallel(threads, [&](int thread, int team) {
    const int64_t weight = blocks + block_rows;
    const auto cut = [&](int part) { return row_at(w.crow, block_rows, 1, weight * part / team); };
    const Range mine{cut(thread), cut(thread + 1)};
    const S* values = w.values;
    if (w.mask != nullptr) {
      S* const masked = scratch.at<S>(values_at);
      const int64_t size = w.r * w.c;
      for (int64_t i = w.crow[mine.begin] * size; i < w.crow[mine.end] * size; ++i)
        masked[i] = w.mask[i] != 0 ? w.values[i] : S(0);
      values = masked;
    }
    const int64_t chunk = ceil_div(kFewRowsAtOnce, w.r);  // its weights are read once for all samples
    for (int64_t b = mine.begin; b < mine.end; b += chunk) {
      const int64_t count = std::min(chunk, mine.end - b), first = b * w.r;
      for (int64_t n = 0; n < sizes.batch; ++n) {
        T* const from = out + n * padded_rows;
        gemv({packed + n * padded_cols, w.col, values, w.r, w.c, w.crow + b, w.crow + b + 1, count,
              bias == nullptr ? nullptr : scratch.at<S>(bias_at) + first, from + first});
        const int64_t stop = std::min(sizes.rows, first + count * w.r);
        if (relu) apply_relu(from + first, stop - first);
        for (int64_t r = first; r < stop; ++r) y[n * ys.batch + r * ys.feature] = static_cast<S>(from[r]);
      }
    }
  });
}

template <class T>
void bsr_linear_forward(const LinearSizes& sizes, const T* x, Strides xs, const BsrWeight<T>& w, const T* bias, T* y,
                        Strides ys, bool relu, int threads) {
  if (sizes.batch == 0 || sizes.rows == 0) return;
  if (bsr_takes_few(sizes.batch, w.r, w.c)) return bsr_few_forward(sizes, x, xs, w, bias, y, ys, relu, threads);
  const Kernels<T>& k = kernels<T>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), padded_cols = round_up(sizes.cols, w.c);
  const int64_t weights = w.crow[padded_rows / w.r] * w.r * w.c;
  const Tiling widest = tiling_of(k, sizes.batch, w.r);
  threads = useful_threads(threads, work_of(weights, sizes.rows, widest));
  const Tiling t = widest.dealt(sizes.batch, threads);
  const int64_t round = strips_per_round(t, padded_cols, sizeof(T), threads), strip_size = padded_cols * t.lanes;
  const bool padded_bias = bias != nullptr && padded_rows > sizes.rows;

  Product<T> product{sizes.rows, w.r, w.c, w.crow, w.col, nullptr, w.values, w.c, 1, bias, y, ys, relu};
  Plan plan;
  const size_t packed_at = plan.add<T>(round * strip_size);
  const size_t out_at = plan.add<T>(product.chunk() * w.r * t.lanes, threads);
  const size_t values_at = plan.add<T>(w.mask != nullptr ? weights : 0);
  const size_t bias_at = plan.add<T>(padded_bias ? padded_rows : 0);
  const Scratch scratch(plan);
  T* const packed = scratch.at<T>(packed_at);
  if (w.mask != nullptr) product.values = scratch.at<T>(values_at);
  if (padded_bias) {
    pad_bias(bias, sizes.rows, padded_rows, scratch.at<T>(bias_at));
    product.bias = scratch.at<T>(bias_at);
  }

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, product.chunk() * w.r * t.lanes, thread);
    if (w.mask != nullptr) mask_share(w.values, w.mask, weights, scratch.at<T>(values_at), thread, team);
    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      const bool dealt = is_dealt(t, round, team);  // each thread packs the strips that it reads, and no other
      if (first > 0 && !(dealt && strips == round)) barrier(team);
      pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed, thread, team, padded_cols);
      if (!dealt || (w.mask != nullptr && first == 0)) barrier(team);
      product.share_of(k, t, packed, strip_size, sizes.batch, first, strips, out, thread, team);
    }
  });
}

#define LTH_INSTANTIATE(T)                                                                                      \
  template void bsr_linear_forward<T>(const LinearSizes&, const T*, Strides, const BsrWeight<T>&, const T*, T*, \
                                      Strides, bool, int);
LTH_INSTANTIATE(float)
LTH_INSTANTIATE(double)
template void bsr_few_forward<Bf16>(const LinearSizes&, const Bf16*, Strides, const BsrWeight<Bf16>&, const Bf16*,
                                    Bf16*, Strides, bool, int);

}  // namespace lth
