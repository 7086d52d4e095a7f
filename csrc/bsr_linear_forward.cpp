// Forward: pack x, then bsr_spmm over this thread's block rows in every strip, unpacking y as it appears. A round is as
// many strips as fit the scratch memory.
#include <cstring>

#include "bsr_linear.h"
#include "bsr_product.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace lth {

template <class T>
void bsr_linear_forward(const LinearSizes& sizes, const T* x, Strides xs, const BsrWeight<T>& w, const T* bias, T* y,
                        Strides ys, int threads) {
  if (sizes.batch == 0 || sizes.rows == 0) return;
  const Kernels<T>& k = kernels<T>();
  const int64_t padded_rows = round_up(sizes.rows, w.r), padded_cols = round_up(sizes.cols, w.c);
  const int64_t weights = w.crow[padded_rows / w.r] * w.r * w.c;
  const Tiling t = tiling_of(k, sizes.batch, w.r);
  threads = useful_threads(threads, work_of(weights, sizes.rows, t));
  const int64_t round = strips_per_round(t, padded_cols, sizeof(T), threads), strip_size = padded_cols * t.lanes;
  const bool pad_bias = bias != nullptr && padded_rows > sizes.rows;

  Product<T> product{sizes.rows, w.r, w.c, w.crow, w.col, nullptr, w.values, w.c, 1, bias, y, ys};
  Plan plan;
  const size_t packed_at = plan.add<T>(round * strip_size);
  const size_t out_at = plan.add<T>(product.chunk() * w.r * t.lanes, threads);
  const size_t values_at = plan.add<T>(w.mask != nullptr ? weights : 0);
  const size_t bias_at = plan.add<T>(pad_bias ? padded_rows : 0);
  const Scratch scratch(plan);
  T* const packed = scratch.at<T>(packed_at);
  if (w.mask != nullptr) product.values = scratch.at<T>(values_at);
  if (pad_bias) {
    std::memcpy(scratch.at<T>(bias_at), bias, static_cast<size_t>(sizes.rows) * sizeof(T));
    std::fill(scratch.at<T>(bias_at) + sizes.rows, scratch.at<T>(bias_at) + padded_rows, T(0));
    product.bias = scratch.at<T>(bias_at);
  }

  parallel(threads, [&](int thread, int team) {
    T* const out = scratch.at<T>(out_at, product.chunk() * w.r * t.lanes, thread);
    if (w.mask != nullptr) mask_share(w.values, w.mask, weights, scratch.at<T>(values_at), thread, team);
    for (int64_t first = 0; first < t.strips; first += round) {
      const int64_t strips = std::min(round, t.strips - first);
      if (first > 0) barrier(team);
      pack_share(k, x, xs, sizes.batch, t, first, strips, sizes.cols, packed, thread, team, padded_cols);
      barrier(team);
      product.share_of(k, t, packed, strip_size, sizes.batch, first, strips, out, thread, team);
    }
  });
}

#define LTH_INSTANTIATE(T)                                                                                      \
  template void bsr_linear_forward<T>(const LinearSizes&, const T*, Strides, const BsrWeight<T>&, const T*, T*, \
                                      Strides, int);
LTH_INSTANTIATE(float)
LTH_INSTANTIATE(double)

}  // namespace lth
