// Every microkernel of microkernels.def in every table, by itself: each tile with rows of no, few and many non-zeros,
// offsets in any unit, pitches with gaps that must stay as they were, with and without bias, from scratch or adding up.
//
// check_<op> is found by the operation's name: a new operation in microkernels.def does not compile without one.
#include "harness.h"
#include "kernels.h"

namespace lth {
namespace test {
namespace {

// Rows of a sparse matrix by their pointers, with gaps between them as blocks of a reduction have them.
struct Rows {
  Array<int32_t> begin, end;
  int64_t rows, nnz;

  static Rows of(Random& random, int64_t rows) {
    std::vector<int32_t> begin, end;
    int32_t at = static_cast<int32_t>(random.below(3));
    for (int64_t r = 0; r < rows; ++r) {
      begin.push_back(at);
      at += static_cast<int32_t>(r % 4 == 2 ? 0 : random.below(14));
      end.push_back(at);
      if (r + 1 < rows) at += static_cast<int32_t>(random.below(2));
    }
    return {Array<int32_t>(begin), Array<int32_t>(end), rows, at};
  }
};

template <class Index>
int64_t fill_offsets(Random& random, const Array<Index>& offset, int64_t below) {
  int64_t largest = 0;
  for (int64_t k = 0; k < offset.size(); ++k) {
    offset[k] = static_cast<Index>(random.below(below));
    largest = std::max<int64_t>(largest, offset[k]);
  }
  return largest;
}

struct Shape {
  int64_t unit, pitch;
};

// Units and pitches for strips of `width` elements: touching, with gaps, and single elements.
std::vector<Shape> shapes(int64_t width) { return {{width, width}, {1, width + 3}, {width + 5, 2 * width}}; }

template <class T, class Index>
void check_spmm(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int tile, const char* isa) {
  const int64_t width = tile * k.lanes;
  Random random(static_cast<uint64_t>(tile));
  for (const Shape& shape : shapes(width)) {
    for (int flags = 0; flags < 4; ++flags) {
      const bool accumulate = flags & 1, biased = flags & 2;
      const int64_t rows = (flags * 5 + tile) % 8;
      begin_case("%s_csr_spmm_%dx%d_%s__%s rows %d unit %d pitch %d accumulate %d bias %d", type_name<T>(), tile,
                 static_cast<int>(k.lanes), type_name<Index>(), isa, static_cast<int>(rows),
                 static_cast<int>(shape.unit), static_cast<int>(shape.pitch), accumulate, biased);
      const Rows w = Rows::of(random, rows);
      const Array<Index> offset(w.nnz);
      const int64_t largest = fill_offsets(random, offset, 17);
      const Array<T> values(w.nnz), x(w.nnz == 0 ? 0 : largest * shape.unit + width), bias(rows);
      const Array<T> y(rows == 0 ? 0 : (rows - 1) * shape.pitch + width), before(y.size());
      random.fill(values), random.fill(x), random.fill(bias), random.fill(before);
      if (accumulate) std::memcpy(y.data(), before.data(), static_cast<size_t>(y.size()) * sizeof(T));
      ops.spmm[tile]({x.data(), offset.data(), shape.unit, values.data(), w.begin.data(), w.end.data(), rows,
                      biased ? bias.data() : nullptr, accumulate, y.data(), shape.pitch});
      for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t r = i / shape.pitch, lane = i % shape.pitch;
        if (lane >= width) {
          if (accumulate ? y[i] != before[i] : !is_poison(y[i])) fail("a gap of y was written, row %d", int(r));
          continue;
        }
        Sum sum;
        sum.add(accumulate ? before[i] : biased ? bias[r] : T(0));
        for (int32_t n = w.begin[r]; n < w.end[r]; ++n)
          sum.add(static_cast<double>(values[n]) * x[offset[n] * shape.unit + lane]);
        expect_sum(y[i], sum, "y", r, lane);
      }
    }
  }
}

template <class T, class Index>
void check_gradients(const Kernels<T>& k, void (*kernel)(const BackwardArgs<T, Index>&), bool want_dx, int tile,
                     const char* isa) {
  if (kernel == nullptr) {
    if (tile <= k.backward_tile) fail("tile %d of %s is missing", tile, isa);
    return;
  }
  const int64_t width = tile * k.lanes;
  Random random(static_cast<uint64_t>(100 + tile));
  for (const Shape& shape : shapes(width)) {
    for (int flags = 0; flags < (want_dx ? 4 : 2); ++flags) {
      const bool accumulate = flags & 2;
      const int64_t cols = (flags * 5 + tile) % 8;
      begin_case("%s_csr_%s_%dx%d_%s__%s cols %d unit %d pitch %d accumulate %d", type_name<T>(),
                 want_dx ? "backward" : "sddmm", tile, static_cast<int>(k.lanes), type_name<Index>(), isa,
                 static_cast<int>(cols), static_cast<int>(shape.unit), static_cast<int>(shape.pitch), accumulate);
      const Rows w = Rows::of(random, cols);
      const Array<Index> offset(w.nnz);
      const int64_t largest = fill_offsets(random, offset, 17), end = cols == 0 ? 0 : (cols - 1) * shape.pitch + width;
      const Array<T> values(w.nnz), dy(w.nnz == 0 ? 0 : largest * shape.unit + width), x(end);
      const Array<T> dx(want_dx ? end : 0), dx_before(dx.size()), dw(w.nnz), dw_before(w.nnz);
      random.fill(values), random.fill(dy), random.fill(x), random.fill(dx_before), random.fill(dw_before);
      std::memcpy(dw.data(), dw_before.data(), static_cast<size_t>(w.nnz) * sizeof(T));
      if (accumulate) std::memcpy(dx.data(), dx_before.data(), static_cast<size_t>(dx.size()) * sizeof(T));
      kernel({x.data(), shape.pitch, dy.data(), offset.data(), shape.unit, want_dx ? values.data() : nullptr,
              w.begin.data(), w.end.data(), cols, accumulate, want_dx ? dx.data() : nullptr, shape.pitch, dw.data()});
      for (int64_t i = 0; i < dx.size(); ++i) {
        const int64_t c = i / shape.pitch, lane = i % shape.pitch;
        if (lane >= width) {
          if (accumulate ? dx[i] != dx_before[i] : !is_poison(dx[i]))
            fail("a gap of dx was written, column %d", int(c));
          continue;
        }
        Sum sum;
        sum.add(accumulate ? dx_before[i] : T(0));
        for (int32_t n = w.begin[c]; n < w.end[c]; ++n)
          sum.add(static_cast<double>(values[n]) * dy[offset[n] * shape.unit + lane]);
        expect_sum(dx[i], sum, "dx", c, lane);
      }
      std::vector<char> touched(static_cast<size_t>(w.nnz));
      for (int64_t c = 0; c < cols; ++c) {
        for (int32_t n = w.begin[c]; n < w.end[c]; ++n) {
          touched[static_cast<size_t>(n)] = 1;
          Sum sum;
          sum.add(dw_before[n]);
          for (int64_t lane = 0; lane < width; ++lane)
            sum.add(static_cast<double>(x[c * shape.pitch + lane]) * dy[offset[n] * shape.unit + lane]);
          expect_sum(dw[n], sum, "dw", n);
        }
      }
      for (int64_t n = 0; n < w.nnz; ++n) {
        if (!touched[static_cast<size_t>(n)]) expect_equal(dw[n], dw_before[n], "dw between rows", n);
      }
    }
  }
}

template <class T, class Index>
void check_backward(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int tile, const char* isa) {
  check_gradients(k, ops.backward[tile], true, tile, isa);
}

template <class T, class Index>
void check_sddmm(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int tile, const char* isa) {
  check_gradients(k, ops.sddmm[tile], false, tile, isa);
}

template <class T>
void check_transpose(const Kernels<T>& k, const char* isa) {
  Random random(7);
  std::vector<int64_t> sizes{0, 1, 2, 3, k.lanes - 1, k.lanes, k.lanes + 1, 2 * k.lanes + 3};
  for (int64_t m : sizes) {
    for (int64_t n : sizes) {
      for (int64_t extra : {int64_t{0}, int64_t{1}, k.lanes}) {
        for (int64_t gap : {0, 3}) {
          const int64_t padded = m + extra, src_pitch = n + gap, dst_pitch = padded + gap;
          begin_case("%s transpose %s m %d n %d padded %d gap %d", type_name<T>(), isa, int(m), int(n), int(padded),
                     int(gap));
          const Array<T> src(m == 0 ? 0 : (m - 1) * src_pitch + n), dst(n == 0 ? 0 : (n - 1) * dst_pitch + padded);
          random.fill(src);
          k.transpose(src.data(), src_pitch, m, n, dst.data(), dst_pitch, padded);
          for (int64_t i = 0; i < dst.size(); ++i) {
            const int64_t c = i / dst_pitch, r = i % dst_pitch;
            if (r >= padded) {
              if (!is_poison(dst[i])) fail("a gap was written at [%d, %d]", int(c), int(r));
            } else {
              expect_equal(dst[i], r < m ? src[r * src_pitch + c] : T(0), "transposed", c, r);
            }
          }
        }
      }
    }
  }
}

template <class T>
void check_sum(const Kernels<T>& k, const char* isa) {
  Random random(8);
  for (int64_t n = 0; n <= 9 * k.lanes + 1; ++n) {
    begin_case("%s sum %s n %d", type_name<T>(), isa, int(n));
    const Array<T> src(n);
    random.fill(src);
    Sum sum;
    for (int64_t i = 0; i < n; ++i) sum.add(src[i]);
    expect_sum(k.sum(src.data(), n), sum, "sum", n);
  }
}

template <class T>
void check_table(const Kernels<T>& k, const char* isa) {
  check_transpose(k, isa);
  check_sum(k, isa);
#define LTH_MICROKERNEL(op, tile)  \
  check_##op(k, k.u16, tile, isa); \
  check_##op(k, k.i32, tile, isa);
#include "microkernels.def"
}

}  // namespace

void microkernels_part() {
  for (Isa isa : runnable_isas()) {
    check_table(table_of(isa).f32, name_of(isa).c_str());
    check_table(table_of(isa).f64, name_of(isa).c_str());
  }
}

}  // namespace test
}  // namespace lth
