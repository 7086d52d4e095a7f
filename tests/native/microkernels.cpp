// Every microkernel of microkernels.def in every table, by itself: each tile with rows of no, few and many non-zeros,
// offsets in any unit, pitches with gaps that must stay as they were, with and without bias, from scratch or adding up.
//
// check_<op> is found by the operation's name: a new operation in microkernels.def does not compile without one, here
// or, for blocks, in block_microkernels.cpp.
#include "microkernels.h"

namespace lth {
namespace test {
namespace {

template <class T, class Index>
void check_spmm(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int tile, const char* isa) {
  const int64_t width = tile * k.lanes;
  Random random(static_cast<uint64_t>(tile));
  for (const Shape& shape : shapes(width)) {
    for (int flags = 0; flags < 8; ++flags) {
      const bool accumulate = flags & 1, biased = flags & 2, placed = flags & 4, relu = random.below(2) == 1;
      const bool apart = accumulate && (biased || placed);  // what is added to lies elsewhere
      const int64_t rows = (flags * 5 + tile) % 8, step = placed ? k.lanes + flags % 3 : k.lanes;
      const int64_t pitch = placed ? tile * step : shape.pitch;
      begin_case("%s_csr_spmm_%dx%d_%s__%s rows %d unit %d pitch %d accumulate %d apart %d bias %d step %d relu %d",
                 type_name<T>(), tile, static_cast<int>(k.lanes), type_name<Index>(), isa, static_cast<int>(rows),
                 static_cast<int>(shape.unit), static_cast<int>(pitch), accumulate, apart, biased,
                 static_cast<int>(step), relu);
      Place place[kMaxTile];
      for (int64_t i = 0; i < tile; ++i) place[i] = {i * step, placed ? random.below(k.lanes + 1) : k.lanes};
      const Rows w = Rows::of(random, rows);
      const Array<Index> offset(w.nnz);
      const int64_t largest = fill_offsets(random, offset, 17);
      const Array<T> values(w.nnz), x(w.nnz == 0 ? 0 : largest * shape.unit + width), bias(rows);
      const Array<T> y(rows == 0 ? 0 : (rows - 1) * pitch + (tile - 1) * step + k.lanes), before(y.size());
      const Array<T> from(apart && rows > 0 ? (rows - 1) * shape.pitch + width : 0);
      for (const Array<T>* a : {&values, &x, &bias, &before, &from}) random.fill(*a);
      const bool in_place = accumulate && !apart;
      if (in_place) std::memcpy(y.data(), before.data(), static_cast<size_t>(y.size()) * sizeof(T));
      ops.spmm[tile]({x.data(), offset.data(), shape.unit, values.data(), w.begin.data(), w.end.data(), rows,
                      biased ? bias.data() : nullptr, accumulate, y.data(), pitch, apart ? from.data() : nullptr,
                      shape.pitch, placed ? place : nullptr, relu});
      for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t r = i / pitch, at = i % pitch, lane = at / step * k.lanes + at % step;
        if (at >= tile * step || at % step >= place[at / step].lanes) {
          if (in_place ? y[i] != before[i] : !is_poison(y[i])) fail("a gap of y was written, row %d", int(r));
          continue;
        }
        Sum sum;
        sum.add(apart ? from[r * shape.pitch + lane] : accumulate ? before[i] : biased ? bias[r] : T(0));
        for (int32_t n = w.begin[r]; n < w.end[r]; ++n)
          sum.add(static_cast<double>(values[n]) * x[offset[n] * shape.unit + lane]);
        if (relu) sum.relu();
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

template <class T, class Index>
void check_few(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int samples, const char* isa) {
  if (ops.few[samples] == nullptr) {
    if (samples < k.lanes) fail("csr_few of %d samples is missing in %s", samples, isa);
    return;
  }
  Random random(static_cast<uint64_t>(200 + samples));
  for (int64_t rows = 0; rows < 12; ++rows) {
    const bool ahead = rows & 1, biased = rows & 2;
    begin_case("%s_csr_few_1x%d_%s__%s rows %d ahead %d bias %d", type_name<T>(), samples, type_name<Index>(), isa,
               static_cast<int>(rows), ahead, biased);
    const Rows w = Rows::of(random, rows);
    const Array<Index> col(w.nnz);
    const int64_t cols = w.nnz == 0 ? 0 : fill_offsets(random, col, 23) + 1;
    const Array<T> values(w.nnz), x(cols * samples), bias(rows), y(rows * samples);
    random.fill(values), random.fill(x), random.fill(bias);
    ops.few[samples]({x.data(), col.data(), values.data(), w.begin.data(), w.end.data(), rows,
                      biased ? bias.data() : nullptr, ahead, y.data()});
    for (int64_t i = 0; i < y.size(); ++i) {
      const int64_t r = i / samples, lane = i % samples;
      Sum sum;
      if (biased) sum.add(bias[r]);
      for (int32_t n = w.begin[r]; n < w.end[r]; ++n)
        sum.add(static_cast<double>(values[n]) * x[col[n] * samples + lane]);
      expect_sum(y[i], sum, "y", r, lane);
    }
  }
}

// csr_fewgrad and csr_scatter, over strips of `width` lanes. What csr_fewgrad takes no notice of is not asked of it.
template <class T, class Index>
void check_scattered(void (*kernel)(const ScatterArgs<T, Index>&), int64_t width, bool adds, const char* name) {
  Random random(static_cast<uint64_t>(300 + width));
  for (int64_t rows = 0; rows < 16; ++rows) {
    const bool want_dx = rows % 3 != 0, want_dw = rows % 3 != 1, ahead = rows & 1, accumulate = adds && (rows & 2);
    begin_case("%s rows %d dx %d dw %d ahead %d accumulate %d", name, static_cast<int>(rows), want_dx, want_dw, ahead,
               accumulate);
    const Rows w = Rows::of(random, rows);
    const Array<Index> col(w.nnz);
    const int64_t cols = w.nnz == 0 ? 0 : fill_offsets(random, col, 23) + 1;
    const Array<T> values(want_dx ? w.nnz : 0), x(want_dw ? cols * width : 0), dy(rows * width);
    const Array<T> dx(want_dx ? cols * width : 0), dx_before(dx.size()), dw(want_dw ? w.nnz : 0), dw_before(dw.size());
    for (const Array<T>* a : {&values, &x, &dy, &dx_before, &dw_before}) random.fill(*a);
    std::memcpy(dx.data(), dx_before.data(), static_cast<size_t>(dx.size()) * sizeof(T));
    if (accumulate) std::memcpy(dw.data(), dw_before.data(), static_cast<size_t>(dw.size()) * sizeof(T));
    kernel({want_dw ? x.data() : nullptr, dy.data(), col.data(), want_dx ? values.data() : nullptr, w.begin.data(),
            w.end.data(), rows, ahead, accumulate, want_dx ? dx.data() : nullptr, want_dw ? dw.data() : nullptr});
    std::vector<Sum> dx_sums(static_cast<size_t>(dx.size()));
    std::vector<char> touched(static_cast<size_t>(dw.size()));
    for (int64_t i = 0; i < dx.size(); ++i) dx_sums[static_cast<size_t>(i)].add(dx_before[i]);
    for (int64_t r = 0; r < rows; ++r) {
      for (int32_t n = w.begin[r]; n < w.end[r]; ++n) {
        Sum sum;
        if (accumulate && want_dw) sum.add(dw_before[n]);
        for (int64_t lane = 0; lane < width; ++lane) {
          const double g = dy[r * width + lane];
          if (want_dx) dx_sums[static_cast<size_t>(col[n] * width + lane)].add(values[n] * g);
          if (want_dw) sum.add(x[col[n] * width + lane] * g);
        }
        if (!want_dw) continue;
        expect_sum(dw[n], sum, "dw", n);
        touched[static_cast<size_t>(n)] = 1;
      }
    }
    for (int64_t i = 0; i < dx.size(); ++i)
      expect_sum(dx[i], dx_sums[static_cast<size_t>(i)], "dx", i / width, i % width);
    for (int64_t n = 0; n < dw.size(); ++n) {
      if (touched[static_cast<size_t>(n)]) continue;
      if (accumulate ? dw[n] != dw_before[n] : !is_poison(dw[n])) fail("dw between rows was written, %d", int(n));
    }
  }
}

template <class T, class Index>
void check_fewgrad(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int samples, const char* isa) {
  char name[80];
  std::snprintf(name, sizeof name, "%s_csr_fewgrad_1x%d_%s__%s", type_name<T>(), samples, type_name<Index>(), isa);
  if (ops.fewgrad[samples] != nullptr) {
    check_scattered(ops.fewgrad[samples], samples, false, name);
  } else if (samples < k.lanes) {
    fail("%s is missing", name);
  }
}

template <class T, class Index>
void check_scatter(const Kernels<T>& k, const IndexedKernels<T, Index>& ops, int tile, const char* isa) {
  char name[80];
  std::snprintf(name, sizeof name, "%s_csr_scatter_%dx%d_%s__%s", type_name<T>(), tile, static_cast<int>(k.lanes),
                type_name<Index>(), isa);
  if (ops.scatter[tile] != nullptr) {
    check_scattered(ops.scatter[tile], tile * k.lanes, true, name);
  } else if (tile <= k.scatter_tile) {
    fail("%s is missing", name);
  }
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
void check_copy_runs(const Kernels<T>& k, const char* isa) {
  Random random(12);
  for (int64_t live = 0; live <= 3 * k.lanes; ++live) {
    for (int64_t extra : {int64_t{0}, int64_t{1}, k.lanes, k.lanes + 3}) {
      const int64_t wide = live + extra, src_pitch = live + random.below(3), dst_pitch = wide + random.below(3);
      const int64_t count = random.below(4);
      begin_case("%s copy_runs %s count %d live %d wide %d pitches %d %d", type_name<T>(), isa, int(count), int(live),
                 int(wide), int(src_pitch), int(dst_pitch));
      const Array<T> src(count == 0 ? 0 : (count - 1) * src_pitch + live);
      const Array<T> dst(count == 0 ? 0 : (count - 1) * dst_pitch + wide);
      random.fill(src);
      k.copy_runs(src.data(), src_pitch, count, live, dst.data(), dst_pitch, wide);
      for (int64_t i = 0; i < dst.size(); ++i) {
        const int64_t r = i / dst_pitch, at = i % dst_pitch;
        if (at >= wide) {
          if (!is_poison(dst[i])) fail("a gap was written at [%d, %d]", int(r), int(at));
        } else {
          expect_equal(dst[i], at < live ? src[r * src_pitch + at] : T(0), "copied", r, at);
        }
      }
    }
  }
}

template <class T>
void check_shift_rows(const Kernels<T>& k, const char* isa) {
  Random random(14);
  for (int64_t wide = 1; wide <= 3 * k.lanes; ++wide) {
    for (int turn = 0; turn < 6; ++turn) {
      const int64_t count = turn == 0 ? wide : random.below(wide + 1), lead = random.below(wide - count + 1);
      const int64_t step = turn < 4 ? 1 : turn - 2, rows = random.below(4);
      const int64_t read = count == 0 ? 0 : (count - 1) * step + 1;
      const int64_t src_pitch = read + random.below(2), dst_pitch = wide + (turn == 0 ? 0 : random.below(3));
      begin_case("%s shift_rows %s rows %d wide %d lead %d count %d step %d pitches %d %d", type_name<T>(), isa,
                 int(rows), int(wide), int(lead), int(count), int(step), int(src_pitch), int(dst_pitch));
      const Array<T> src(rows == 0 ? 0 : (rows - 1) * src_pitch + read);
      const Array<T> dst(rows == 0 ? 0 : (rows - 1) * dst_pitch + wide);
      random.fill(src);
      k.shift_rows(src.data(), src_pitch, rows, lead, count, step, dst.data(), dst_pitch, wide);
      for (int64_t i = 0; i < dst.size(); ++i) {
        const int64_t r = i / dst_pitch, at = i % dst_pitch, from = at - lead;
        if (at < wide)
          expect_equal(dst[i], from >= 0 && from < count ? src[r * src_pitch + from * step] : T(0), "shifted", r, at);
        else if (!is_poison(dst[i]))
          fail("a gap was written at [%d, %d]", int(r), int(at));
      }
    }
  }
}

template <class T>
void check_relu(const Kernels<T>& k, const char* isa) {
  begin_case("%s relu of a NaN %s", type_name<T>(), isa);
  const T x[] = {std::numeric_limits<T>::quiet_NaN(), T(-1), T(2), -std::numeric_limits<T>::infinity()};
  const int32_t begin = 0, end = 0;
  const Array<T> from(k.lanes), y(k.lanes);
  for (int64_t i = 0; i < k.lanes; ++i) from[i] = x[i % 4];
  SpmmArgs<T, int32_t> args{};
  args.begin = &begin, args.end = &end, args.rows = 1, args.accumulate = args.relu = true;
  args.from = from.data(), args.y = y.data();
  k.i32.spmm[1](args);
  for (int64_t i = 0; i < k.lanes; ++i) {
    if (i % 4 == 0 ? !std::isnan(y[i]) : y[i] != std::max(x[i % 4], T(0))) fail("y[%d] is %g", int(i), double(y[i]));
  }
}

// The gradient of an output: what a ReLU passes on, moved as transpose and copy_runs do, and its sum.
template <class T>
void check_gradient(const Kernels<T>& k, const char* isa) {
  Random random(13);
  for (int64_t n = 0; n <= 3 * k.lanes; ++n) {
    const int64_t runs = 1 + random.below(2 * k.lanes), pitch = n + random.below(3);
    const bool gated = n % 2;
    begin_case("%s gradient %s runs %d n %d gated %d", type_name<T>(), isa, int(runs), int(n), gated);
    const Array<T> grad((runs - 1) * pitch + n), activated(grad.size()), before(k.lanes);
    const Array<T> copied(runs * n), turned(runs * n), passed(runs * n);
    random.fill(grad), random.fill(activated), random.fill(before);
    const T* const gate = gated ? activated.data() : nullptr;
    Sum all, first;
    for (int64_t lane = 0; lane < k.lanes; ++lane) all.add(before[lane]), first.add(before[lane]);
    for (int64_t i = 0; i < runs * n; ++i) {
      const int64_t at = i / n * pitch + i % n;
      passed[i] = gated && activated[at] <= 0 ? T(0) : grad[at];
      all.add(passed[i]);
      if (i < n) first.add(passed[i]);
    }
    all.terms += k.lanes, first.terms += k.lanes;  // those of `total`
    const auto expect_total = [&](const Sum& right, const auto& call) {
      const Array<T> sums(k.lanes);
      std::memcpy(sums.data(), before.data(), static_cast<size_t>(k.lanes) * sizeof(T));
      call(sums.data());
      T total = 0;
      for (int64_t lane = 0; lane < k.lanes; ++lane) total += sums[lane];
      expect_sum(total, right, "sum", 0);
    };
    expect_total(all, [&](T* sums) {
      k.copy_gradient(grad.data(), gate, pitch, runs, n, copied.data(), n, n, sums, 0);
    });
    expect_total(all, [&](T* sums) {
      k.transpose_gradient(grad.data(), gate, pitch, runs, n, turned.data(), runs, runs, sums);
    });
    expect_total(first, [&](T* sums) { k.sum_gradient(grad.data(), gate, n, sums); });
    for (int64_t i = 0; i < runs * n; ++i) {
      expect_equal(copied[i], passed[i], "copied", i / n, i % n);
      expect_equal(turned[i % n * runs + i / n], passed[i], "transposed", i / n, i % n);
    }
  }
}

template <class T>
void check_table(const Kernels<T>& k, const char* isa) {
  check_transpose(k, isa);
  check_sum(k, isa);
  check_copy_runs(k, isa);
  check_shift_rows(k, isa);
  check_relu(k, isa);
  check_gradient(k, isa);
  check_block_kernels(k, isa);
#define LTH_MICROKERNEL(op, tile)  \
  check_##op(k, k.u16, tile, isa); \
  check_##op(k, k.i32, tile, isa);
#define LTH_FEW(op, samples)          \
  check_##op(k, k.u16, samples, isa); \
  check_##op(k, k.i32, samples, isa);
#define LTH_BSR_MICROKERNEL(op, rows, tile)
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
