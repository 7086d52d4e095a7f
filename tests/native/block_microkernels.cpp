// The microkernels for blocks, as microkernels.cpp has the others: entries of one and of several columns, as a BSR
// weight stores them and transposed, panels of fewer rows than a block has, pitches with gaps that must stay as they
// were.
#include "microkernels.h"

namespace lth {
namespace test {
namespace {

template <class T>
void copy(const Array<T>& to, const Array<T>& from) {
  if (from.size() > 0) std::memcpy(to.data(), from.data(), static_cast<size_t>(from.size()) * sizeof(T));
}

// A gap of an output must hold what it held: `before` where the kernel adds up, else poison.
template <class T>
void expect_gap(const T& found, const T& before, bool accumulate, const char* what, int64_t i) {
  if (accumulate ? found != before : !is_poison(found)) fail("a gap of %s was written, at %d", what, int(i));
}

template <class T, class Index>
void check_bsr_spmm(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int rows, int tile, const char* isa) {
  const auto kernel = ops.bsr_spmm[rows][tile];
  if (kernel == nullptr) {
    if (tile <= k.bsr_tile[rows]) fail("bsr_spmm of %d rows and tile %d is missing in %s", rows, tile, isa);
    return;
  }
  const int64_t lanes = tile * k.lanes;
  Random random(static_cast<uint64_t>(10 * rows + tile));
  for (const Shape& shape : shapes(lanes)) {
    for (int turn = 0; turn < 8; ++turn) {
      const bool accumulate = turn & 1, biased = turn & 2, placed = turn & 4, transposed = random.below(2) == 1;
      const bool relu = random.below(2) == 1, apart = accumulate && random.below(2) == 1, partly = random.below(2) == 1;
      const int64_t width = turn % 3 == 0 ? 1 : 1 + random.below(4), panels = random.below(6);
      const int64_t panel_rows = rows + random.below(3), prefetch = random.below(2) * panel_rows * width;
      const int64_t x_pitch = width == 1 ? 0 : (shape.unit == 1 ? 3 : lanes + random.below(3));
      begin_case("%s_bsr_spmm_%dx%dx%d_%s__%s panels %d of %d width %d unit %d pitch %d, turn %d transposed %d",
                 type_name<T>(), rows, tile, static_cast<int>(k.lanes), type_name<Index>(), isa,
                 static_cast<int>(panels), static_cast<int>(panel_rows), static_cast<int>(width),
                 static_cast<int>(shape.unit), static_cast<int>(shape.pitch), turn, transposed);
      const Rows w = Rows::of(random, panels);
      const int64_t entries = w.nnz, entry = panel_rows * width;
      const int64_t row_stride = transposed ? 1 : width, column_stride = transposed ? panel_rows : 1;
      const Array<Index> offset(entries);
      const Array<int32_t> position(placed ? entries : 0);
      const int64_t reach = (width - 1) * x_pitch + lanes;
      const Array<T> x(entries == 0 ? 0 : fill_offsets(random, offset, 17) * shape.unit + reach);
      for (int64_t n = 0; n < position.size(); ++n) position[n] = static_cast<int32_t>(entries - 1 - n);
      const int64_t out_rows = panels == 0 ? 0 : (panels - 1) * panel_rows + rows;
      const Array<T> values(entries * entry), bias(out_rows);
      const Array<T> y(panels == 0 ? 0 : (out_rows - 1) * shape.pitch + lanes), before(y.size());
      const Array<T> from(apart && panels > 0 ? (out_rows - 1) * (lanes + 1) + lanes : 0);
      for (const Array<T>* a : {&x, &values, &bias, &before, &from}) random.fill(*a);
      const bool in_place = accumulate && !apart;
      if (in_place) copy(y, before);
      Place place[kMaxTile];
      for (int64_t i = 0; i < tile; ++i) place[i] = {i * k.lanes, partly ? random.below(k.lanes + 1) : k.lanes};
      kernel({x.data(), offset.data(), shape.unit, width, x_pitch, values.data(), placed ? position.data() : nullptr,
              entry, row_stride, column_stride, prefetch, w.begin.data(), w.end.data(), panels, panel_rows,
              biased ? bias.data() : nullptr, accumulate, y.data(), shape.pitch, relu, apart ? from.data() : nullptr,
              lanes + 1, partly ? place : nullptr});
      for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t r = i / shape.pitch, lane = i % shape.pitch, p = r / panel_rows, in = r % panel_rows;
        if (lane >= lanes || in >= rows || lane % k.lanes >= place[lane / k.lanes].lanes) {
          expect_gap(y[i], before[i], in_place, "y", r);
          continue;
        }
        Sum sum;
        sum.add(apart ? from[r * (lanes + 1) + lane] : accumulate ? before[i] : biased ? bias[r] : T(0));
        for (int32_t n = w.begin[p]; n < w.end[p]; ++n) {
          const int64_t at = (placed ? position[n] : n) * entry + in * row_stride;
          for (int64_t j = 0; j < width; ++j) {
            sum.add(static_cast<double>(values[at + j * column_stride]) *
                    x[offset[n] * shape.unit + j * x_pitch + lane]);
          }
        }
        if (relu) sum.relu();
        expect_sum(y[i], sum, "y", r, lane);
      }
    }
  }
}

template <class T, class Index>
void check_gradients(const Kernels<T>& k, void (*kernel)(const BsrBackwardArgs<T, Index>&), bool want_dx, int rows,
                     int tile, const char* isa) {
  if (kernel == nullptr) {
    if (tile <= k.backward_tile) fail("bsr_backward of %d rows and tile %d is missing in %s", rows, tile, isa);
    return;
  }
  const int64_t lanes = tile * k.lanes;
  Random random(static_cast<uint64_t>(100 + tile));
  for (const Shape& shape : shapes(lanes)) {
    for (int turn = 0; turn < 4; ++turn) {
      const bool accumulate = turn & 1;
      const int64_t cols = (turn * 5 + tile) % 8, dy_pitch = shape.unit == 1 ? 2 : lanes + random.below(3);
      begin_case("%s_bsr_%s_%dx%dx%d_%s__%s cols %d unit %d pitch %d dy pitch %d accumulate %d", type_name<T>(),
                 want_dx ? "backward" : "sddmm", rows, tile, static_cast<int>(k.lanes), type_name<Index>(), isa,
                 static_cast<int>(cols), static_cast<int>(shape.unit), static_cast<int>(shape.pitch),
                 static_cast<int>(dy_pitch), accumulate);
      const Rows w = Rows::of(random, cols);
      const Array<Index> offset(w.nnz);
      const int64_t end = cols == 0 ? 0 : (cols - 1) * shape.pitch + lanes, reach = (rows - 1) * dy_pitch + lanes;
      const Array<T> dy(w.nnz == 0 ? 0 : fill_offsets(random, offset, 17) * shape.unit + reach);
      const Array<T> values(want_dx ? w.nnz * rows : 0), x(end), dw(w.nnz * rows), dw_before(dw.size());
      const Array<T> dx(want_dx ? end : 0), dx_before(dx.size());
      for (const Array<T>* a : {&values, &dy, &x, &dx_before, &dw_before}) random.fill(*a);
      copy(dw, dw_before);
      if (accumulate) copy(dx, dx_before);
      kernel({x.data(), shape.pitch, dy.data(), offset.data(), shape.unit, dy_pitch, want_dx ? values.data() : nullptr,
              w.begin.data(), w.end.data(), cols, accumulate, want_dx ? dx.data() : nullptr, shape.pitch, dw.data()});
      for (int64_t i = 0; i < dx.size(); ++i) {
        const int64_t c = i / shape.pitch, lane = i % shape.pitch;
        if (lane >= lanes) {
          expect_gap(dx[i], dx_before[i], accumulate, "dx", c);
          continue;
        }
        Sum sum;
        sum.add(accumulate ? dx_before[i] : T(0));
        for (int32_t n = w.begin[c]; n < w.end[c]; ++n) {
          for (int64_t r = 0; r < rows; ++r)
            sum.add(static_cast<double>(values[n * rows + r]) * dy[offset[n] * shape.unit + r * dy_pitch + lane]);
        }
        expect_sum(dx[i], sum, "dx", c, lane);
      }
      std::vector<char> touched(static_cast<size_t>(dw.size()));
      for (int64_t c = 0; c < cols; ++c) {
        for (int64_t at = w.begin[c] * rows; at < w.end[c] * rows; ++at) {
          touched[static_cast<size_t>(at)] = 1;
          Sum sum;
          sum.add(dw_before[at]);
          const int64_t from = offset[at / rows] * shape.unit + at % rows * dy_pitch;
          for (int64_t lane = 0; lane < lanes; ++lane)
            sum.add(static_cast<double>(x[c * shape.pitch + lane]) * dy[from + lane]);
          expect_sum(dw[at], sum, "dw", at / rows, at % rows);
        }
      }
      for (int64_t at = 0; at < dw.size(); ++at) {
        if (!touched[static_cast<size_t>(at)]) expect_equal(dw[at], dw_before[at], "dw between columns", at);
      }
    }
  }
}

template <class T, class Index>
void check_bsr_backward(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int rows, int tile,
                        const char* isa) {
  check_gradients(k, ops.bsr_backward[rows][tile], true, rows, tile, isa);
}

template <class T, class Index>
void check_bsr_sddmm(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int rows, int tile, const char* isa) {
  check_gradients(k, ops.bsr_sddmm[rows][tile], false, rows, tile, isa);
}

template <class T>
void check_bsr_outer(const Kernels<T>& k, const char* isa) {
  Random random(9);
  for (int64_t rows : {0, 1, 2, 3, 4, 5, 9, 16}) {
    for (int64_t cols : {1, 2, 3, 4, 5, 8, 11}) {
      const int64_t strips = random.below(4), registers = 1 + random.below(kMaxTile), lanes = registers * k.lanes;
      const int64_t pitch = lanes + random.below(3), dw_pitch = cols + random.below(3);
      begin_case("%s_bsr_outer__%s rows %d cols %d strips %d registers %d pitch %d dw pitch %d", type_name<T>(), isa,
                 int(rows), int(cols), int(strips), int(registers), int(pitch), int(dw_pitch));
      const int64_t x_strip = cols * pitch + random.below(2), dy_strip = rows * pitch + random.below(2);
      const auto size = [&](int64_t features, int64_t strip) {
        return strips == 0 || features == 0 ? 0 : (strips - 1) * strip + (features - 1) * pitch + lanes;
      };
      const Array<T> x(size(cols, x_strip)), dy(size(rows, dy_strip));
      const Array<T> dw(rows == 0 ? 0 : (rows - 1) * dw_pitch + cols), before(dw.size());
      for (const Array<T>* a : {&x, &dy, &before}) random.fill(*a);
      copy(dw, before);
      k.bsr_outer({x.data(), x_strip, dy.data(), dy_strip, pitch, strips, registers, rows, cols, dw.data(), dw_pitch});
      for (int64_t i = 0; i < dw.size(); ++i) {
        const int64_t r = i / dw_pitch, c = i % dw_pitch;
        if (c >= cols) {
          expect_gap(dw[i], before[i], true, "dw", r);
          continue;
        }
        Sum sum;
        sum.add(before[i]);
        for (int64_t s = 0; s < strips; ++s) {
          for (int64_t lane = 0; lane < lanes; ++lane) {
            sum.add(static_cast<double>(x[s * x_strip + c * pitch + lane]) *
                    dy[s * dy_strip + r * pitch + lane]);
          }
        }
        expect_sum(dw[i], sum, "dw", r, c);
      }
    }
  }
}

template <class T>
void check_bsr_gemv(const Kernels<T>& k, const char* isa) {
  Random random(11);
  const int64_t sides[] = {1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 37};
  for (int64_t r : sides) {
    for (int64_t c : sides) {
      const int64_t block_rows = random.below(5);
      const bool biased = random.below(2) == 1;
      begin_case("%s_bsr_gemv__%s block %d x %d block rows %d bias %d", type_name<T>(), isa, int(r), int(c),
                 int(block_rows), biased);
      const Rows w = Rows::of(random, block_rows);
      const Array<int32_t> col(w.nnz);
      const Array<T> x(w.nnz == 0 ? 0 : (fill_offsets(random, col, 9) + 1) * c);
      const Array<T> values(w.nnz * r * c), bias(block_rows * r), y(block_rows * r);
      for (const Array<T>* a : {&x, &values, &bias}) random.fill(*a);
      k.bsr_gemv({x.data(), col.data(), values.data(), r, c, w.begin.data(), w.end.data(), block_rows,
                  biased ? bias.data() : nullptr, y.data()});
      for (int64_t i = 0; i < y.size(); ++i) {
        Sum sum;
        if (biased) sum.add(bias[i]);
        for (int64_t n = w.begin[i / r]; n < w.end[i / r]; ++n) {
          for (int64_t j = 0; j < c; ++j)
            sum.add(static_cast<double>(values[(n * r + i % r) * c + j]) * x[col[n] * c + j]);
        }
        expect_sum(y[i], sum, "y", i);
      }
    }
  }
}

}  // namespace

template <class T>
void check_block_kernels(const Kernels<T>& k, const char* isa) {
  check_bsr_outer(k, isa);
  check_bsr_gemv(k, isa);
#define LTH_MICROKERNEL(op, tile)
#define LTH_FEW(op, samples)
#define LTH_BSR_MICROKERNEL(op, rows, tile) \
  check_##op(k, k.u16, rows, tile, isa);    \
  check_##op(k, k.i32, rows, tile, isa);
#include "microkernels.def"
}

template void check_block_kernels<float>(const Kernels<float>&, const char*);
template void check_block_kernels<double>(const Kernels<double>&, const char*);

}  // namespace test
}  // namespace lth
