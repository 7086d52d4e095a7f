// lth_sparse._C: what Python calls. Only the files module*.cpp know Python: they turn integers into pointers and types,
// and nothing else.
//
// Arguments are checked in Python (lth_sparse/ops); here only what would make a call meaningless is refused. No
// function holds the GIL while it computes. lth_sparse/_C.pyi documents every function.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bf16_forward.h"
#include "bsr_conv.h"
#include "bsr_linear.h"
#include "cpu_features.h"
#include "csr_conv.h"
#include "csr_linear.h"
#include "expand.h"
#include "kernels.h"
#include "module.h"
#include "parallel.h"
#include "peak.h"
#include "scratch.h"

namespace py = pybind11;

namespace {

using namespace lth::binding;

// Calls body(Type<value>, Type<index>) for the types that the codes name.
template <class Body>
void with_types(int dtype, int index_bits, Body&& body) {
  if (dtype != 0 && dtype != 1)
    throw std::invalid_argument("dtype: expected 0 (float32) or 1 (float64), got " + std::to_string(dtype));
  check_index_bits(index_bits);
  if (dtype == 0 && index_bits == 16) body(Type<float>(), Type<uint16_t>());
  if (dtype == 0 && index_bits == 32) body(Type<float>(), Type<int32_t>());
  if (dtype == 1 && index_bits == 16) body(Type<double>(), Type<uint16_t>());
  if (dtype == 1 && index_bits == 32) body(Type<double>(), Type<int32_t>());
}

// The same in a forward pass, which bfloat16 has, too.
template <class Body>
void with_forward_types(int dtype, int index_bits, Body&& body) {
  if (dtype < 0 || dtype > 2) {
    throw std::invalid_argument("dtype: expected 0 (float32), 1 (float64) or 2 (bfloat16), got " +
                                std::to_string(dtype));
  }
  check_index_bits(index_bits);
  if (dtype != 2) return with_types(dtype, index_bits, std::forward<Body>(body));
  if (index_bits == 16) body(Type<lth::Bf16>(), Type<uint16_t>());
  if (index_bits == 32) body(Type<lth::Bf16>(), Type<int32_t>());
}

void check_linear(int64_t batch, int64_t rows, int64_t cols, int threads) {
  at_least("batch", batch, 0);
  at_least("rows", rows, 0);
  at_least("cols", cols, 0);
  at_least("threads", threads, 1);
}

void csr_linear_forward(Pointer x, Pointer values, Pointer bias, Pointer y, Pointer crow, Pointer col, int64_t batch,
                        int64_t rows, int64_t cols, int64_t x_batch_stride, int64_t x_feature_stride,
                        int64_t y_batch_stride, int64_t y_feature_stride, bool relu, int index_bits, int dtype,
                        int threads) {
  check_linear(batch, rows, cols, threads);
  not_null("crow", crow, true);
  not_null("x", x, batch > 0 && cols > 0);
  not_null("y", y, batch > 0 && rows > 0);
  with_forward_types(dtype, index_bits, [&](auto value, auto index) {
    using T = typename decltype(value)::type;
    using Index = typename decltype(index)::type;
    lth::csr_linear_forward<T, Index>(
        {batch, rows, cols}, as<const T>(x), {x_batch_stride, x_feature_stride}, as<const T>(values), as<const T>(bias),
        as<T>(y), {y_batch_stride, y_feature_stride}, as<const int32_t>(crow), as<const Index>(col), relu, threads);
  });
}

void csr_linear_backward(Pointer grad, Pointer activated, Pointer x, Pointer values, Pointer dx, Pointer dvalues,
                         Pointer dbias, Pointer crow, Pointer col, Pointer ccol, Pointer row, Pointer perm,
                         int64_t batch, int64_t rows, int64_t cols, int64_t grad_batch_stride,
                         int64_t grad_feature_stride, int64_t activated_batch_stride,
                         int64_t activated_feature_stride, int64_t x_batch_stride, int64_t x_feature_stride,
                         int64_t dx_batch_stride, int64_t dx_feature_stride, int index_bits, int dtype,
                         int threads) {
  check_linear(batch, rows, cols, threads);
  not_null("crow", crow, true);
  not_null("ccol", ccol, true);
  not_null("grad", grad, batch > 0 && rows > 0);
  not_null("x", x, batch > 0 && cols > 0 && dvalues != 0);
  with_types(dtype, index_bits, [&](auto value, auto index) {
    using T = typename decltype(value)::type;
    using Index = typename decltype(index)::type;
    const lth::Gradient<T> dy{as<const T>(grad), {grad_batch_stride, grad_feature_stride}, as<const T>(activated),
                              {activated_batch_stride, activated_feature_stride}};
    lth::csr_linear_backward<T, Index>({batch, rows, cols}, dy, as<const T>(x), {x_batch_stride, x_feature_stride},
                                       as<const T>(values), as<T>(dx), {dx_batch_stride, dx_feature_stride},
                                       as<T>(dvalues), as<T>(dbias), as<const int32_t>(crow), as<const Index>(col),
                                       as<const int32_t>(ccol), as<const Index>(row), as<const int32_t>(perm),
                                       threads);
  });
}

void check_bsr(int64_t batch, int64_t rows, int64_t cols, int64_t block_rows, int64_t block_cols, int threads) {
  check_linear(batch, rows, cols, threads);
  at_least("block_rows", block_rows, 1);
  at_least("block_cols", block_cols, 1);
}

void bsr_linear_forward(Pointer x, Pointer values, Pointer mask, Pointer bias, Pointer y, Pointer crow, Pointer col,
                        int64_t batch, int64_t rows, int64_t cols, int64_t block_rows, int64_t block_cols,
                        int64_t x_batch_stride, int64_t x_feature_stride, int64_t y_batch_stride,
                        int64_t y_feature_stride, bool relu, int dtype, int threads) {
  check_bsr(batch, rows, cols, block_rows, block_cols, threads);
  not_null("crow", crow, true);
  not_null("x", x, batch > 0 && cols > 0);
  not_null("y", y, batch > 0 && rows > 0);
  with_forward_types(dtype, 32, [&](auto value, auto) {
    using T = typename decltype(value)::type;
    const lth::BsrWeight<T> weight{block_rows, block_cols, as<const T>(values), as<const uint8_t>(mask),
                                   as<const int32_t>(crow), as<const int32_t>(col), nullptr, nullptr, nullptr};
    lth::bsr_linear_forward<T>({batch, rows, cols}, as<const T>(x), {x_batch_stride, x_feature_stride}, weight,
                               as<const T>(bias), as<T>(y), {y_batch_stride, y_feature_stride}, relu, threads);
  });
}

void bsr_linear_backward(Pointer grad, Pointer activated, Pointer x, Pointer values, Pointer mask, Pointer dx,
                         Pointer dvalues, Pointer dbias, Pointer ccol, Pointer row, Pointer perm, int64_t batch,
                         int64_t rows, int64_t cols, int64_t block_rows, int64_t block_cols, int64_t grad_batch_stride,
                         int64_t grad_feature_stride, int64_t activated_batch_stride,
                         int64_t activated_feature_stride, int64_t x_batch_stride, int64_t x_feature_stride,
                         int64_t dx_batch_stride, int64_t dx_feature_stride, int dtype, int threads) {
  check_bsr(batch, rows, cols, block_rows, block_cols, threads);
  not_null("ccol", ccol, true);
  not_null("grad", grad, batch > 0 && rows > 0);
  not_null("x", x, batch > 0 && cols > 0 && dvalues != 0);
  with_types(dtype, 32, [&](auto value, auto) {
    using T = typename decltype(value)::type;
    const lth::BsrWeight<T> weight{block_rows, block_cols, as<const T>(values), as<const uint8_t>(mask), nullptr,
                                   nullptr, as<const int32_t>(ccol), as<const int32_t>(row), as<const int32_t>(perm)};
    const lth::Gradient<T> dy{as<const T>(grad), {grad_batch_stride, grad_feature_stride}, as<const T>(activated),
                              {activated_batch_stride, activated_feature_stride}};
    lth::bsr_linear_backward<T>({batch, rows, cols}, dy, as<const T>(x), {x_batch_stride, x_feature_stride}, weight,
                                as<T>(dx), {dx_batch_stride, dx_feature_stride}, as<T>(dvalues), as<T>(dbias), threads);
  });
}

void csr_conv2d_forward(Pointer x, Pointer values, Pointer bias, Pointer y, Pointer crow, Pointer col, int64_t n,
                        int64_t channels, int64_t height, int64_t width, int64_t out_channels, int64_t groups,
                        int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                        int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t out_h, int64_t out_w,
                        bool feature_major, bool relu, int index_bits, int dtype, int threads) {
  const lth::ConvSizes sizes{n,        channels, height, width, out_channels, groups,     kernel_h, kernel_w,
                             stride_h, stride_w, pad_h,  pad_w, dilation_h,   dilation_w, out_h,    out_w,
                             feature_major};
  lth::check(sizes);
  at_least("threads", threads, 1);
  not_null("crow", crow, true);
  not_null("x", x, n * channels * height * width > 0);
  not_null("y", y, n * out_channels * out_h * out_w > 0);
  with_forward_types(dtype, index_bits, [&](auto value, auto index) {
    using T = typename decltype(value)::type;
    using Index = typename decltype(index)::type;
    lth::csr_conv2d_forward<T, Index>(sizes, as<const T>(x), as<const T>(values), as<const T>(bias), as<T>(y),
                                      as<const int32_t>(crow), as<const Index>(col), relu, threads);
  });
}

void bsr_conv2d_forward(Pointer x, Pointer values, Pointer mask, Pointer bias, Pointer y, Pointer crow, Pointer col,
                        int64_t n, int64_t channels, int64_t height, int64_t width, int64_t out_channels,
                        int64_t groups, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t out_h,
                        int64_t out_w, bool feature_major, bool relu, int64_t block_rows, int64_t block_cols,
                        int dtype, int threads) {
  const lth::ConvSizes sizes{n,        channels, height, width, out_channels, groups,     kernel_h, kernel_w,
                             stride_h, stride_w, pad_h,  pad_w, dilation_h,   dilation_w, out_h,    out_w,
                             feature_major};
  lth::check(sizes);
  check_bsr(n, out_channels, channels, block_rows, block_cols, threads);
  not_null("crow", crow, true);
  not_null("x", x, n * channels * height * width > 0);
  not_null("y", y, n * out_channels * out_h * out_w > 0);
  with_forward_types(dtype, 32, [&](auto value, auto) {
    using T = typename decltype(value)::type;
    const lth::BsrWeight<T> weight{block_rows, block_cols, as<const T>(values), as<const uint8_t>(mask),
                                   as<const int32_t>(crow), as<const int32_t>(col), nullptr, nullptr, nullptr};
    lth::bsr_conv2d_forward<T>(sizes, as<const T>(x), weight, as<const T>(bias), as<T>(y), relu, threads);
  });
}

void bsr_conv2d_backward(Pointer grad, Pointer activated, Pointer x, Pointer values, Pointer mask, Pointer dx,
                         Pointer dvalues, Pointer dbias, Pointer ccol, Pointer row, Pointer perm, int64_t n,
                         int64_t channels, int64_t height, int64_t width, int64_t out_channels, int64_t groups,
                         int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                         int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t out_h, int64_t out_w,
                         bool grad_feature_major, bool x_feature_major, int64_t block_rows, int64_t block_cols,
                         int dtype, int threads) {
  const lth::ConvSizes sizes{n,        channels, height, width, out_channels, groups,     kernel_h, kernel_w,
                             stride_h, stride_w, pad_h,  pad_w, dilation_h,   dilation_w, out_h,    out_w};
  lth::check(sizes);
  check_bsr(n, out_channels, channels, block_rows, block_cols, threads);
  not_null("ccol", ccol, true);
  not_null("grad", grad, n * out_channels * out_h * out_w > 0);
  not_null("x", x, n * channels * height * width > 0 && dvalues != 0);
  with_types(dtype, 32, [&](auto value, auto) {
    using T = typename decltype(value)::type;
    const lth::BsrWeight<T> weight{block_rows,
                                   block_cols,
                                   as<const T>(values),
                                   as<const uint8_t>(mask),
                                   nullptr,
                                   nullptr,
                                   as<const int32_t>(ccol),
                                   as<const int32_t>(row),
                                   as<const int32_t>(perm)};
    lth::bsr_conv2d_backward<T>(sizes, as<const T>(grad), as<const T>(activated), as<const T>(x), weight, as<T>(dx),
                                as<T>(dvalues), as<T>(dbias), grad_feature_major, x_feature_major, threads);
  });
}

void csr_conv2d_backward(Pointer grad, Pointer activated, Pointer x, Pointer values, Pointer dx, Pointer dvalues,
                         Pointer dbias, Pointer ccol, Pointer row, Pointer perm, int64_t n, int64_t channels,
                         int64_t height, int64_t width, int64_t out_channels, int64_t groups, int64_t kernel_h,
                         int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                         int64_t dilation_h, int64_t dilation_w, int64_t out_h, int64_t out_w, bool grad_feature_major,
                         bool x_feature_major, int index_bits, int dtype, int threads) {
  const lth::ConvSizes sizes{n,        channels, height, width, out_channels, groups,     kernel_h, kernel_w,
                             stride_h, stride_w, pad_h,  pad_w, dilation_h,   dilation_w, out_h,    out_w};
  lth::check(sizes);
  at_least("threads", threads, 1);
  not_null("ccol", ccol, true);
  not_null("grad", grad, n * out_channels * out_h * out_w > 0);
  not_null("x", x, n * channels * height * width > 0 && dvalues != 0);
  with_types(dtype, index_bits, [&](auto value, auto index) {
    using T = typename decltype(value)::type;
    using Index = typename decltype(index)::type;
    lth::csr_conv2d_backward<T, Index>(sizes, as<const T>(grad), as<const T>(activated), as<const T>(x),
                                       as<const T>(values), as<T>(dx), as<T>(dvalues), as<T>(dbias),
                                       as<const int32_t>(ccol), as<const Index>(row), as<const int32_t>(perm),
                                       grad_feature_major, x_feature_major, threads);
  });
}

void check_move(Pointer values, Pointer bits, Pointer rank, Pointer dense, int64_t nnz, int64_t numel, int threads) {
  at_least("nnz", nnz, 0);
  at_least("numel", numel, nnz);
  at_least("threads", threads, 1);
  not_null("dense", dense, numel > 0);
  not_null("values", values, nnz > 0);
  not_null("bits", bits, numel > 0);
  not_null("rank", rank, numel > 0);
}

void expand(Pointer values, Pointer bits, Pointer rank, Pointer dense, int64_t nnz, int64_t numel, int width,
            int threads) {
  check_move(values, bits, rank, dense, nnz, numel, threads);
  lth::expand(as<const void>(values), as<const uint8_t>(bits), as<const int32_t>(rank), as<void>(dense), numel, width,
              threads);
}

void compress(Pointer dense, Pointer bits, Pointer rank, Pointer values, int64_t nnz, int64_t numel, int width,
              int threads) {
  check_move(values, bits, rank, dense, nnz, numel, threads);
  lth::compress(as<const void>(dense), as<const uint8_t>(bits), as<const int32_t>(rank), as<void>(values), numel, width,
                threads);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = std::string("gcc ") + __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#if defined(LTH_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(LTH_SPARSE_VERSION)
  info["version"] = LTH_SPARSE_VERSION;
#else
  info["version"] = "unknown";
#endif
  return info;
}

int64_t set_thread_grain(int64_t multiply_adds) {
  at_least("multiply_adds", multiply_adds, 1);
  return lth::thread_grain().exchange(multiply_adds);
}

double fma_peak(double seconds, int threads) {
  if (!(seconds > 0)) {
    throw std::invalid_argument("seconds: expected a positive number, got " + std::to_string(seconds));
  }
  at_least("threads", threads, 1);
  return lth::fma_peak(seconds, threads);
}

std::vector<std::string> names_of(const std::vector<lth::Isa>& isas) {
  std::vector<std::string> names;
  for (lth::Isa isa : isas) names.push_back(lth::name_of(isa));
  return names;
}

}  // namespace

// Sizes of a convolution, as lth::ConvSizes has them.
#define LTH_CONV_SIZES                                                                                                 \
  py::arg("n"), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("out_channels"), py::arg("groups"),  \
  py::arg("kernel_h"), py::arg("kernel_w"), py::arg("stride_h"), py::arg("stride_w"), py::arg("pad_h"),                \
  py::arg("pad_w"), py::arg("dilation_h"), py::arg("dilation_w"), py::arg("out_h"), py::arg("out_w")

PYBIND11_MODULE(_C, m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.doc() = "CPU kernels of lth_sparse; see _C.pyi";
  m.def("csr_linear_forward", &csr_linear_forward, no_gil, py::arg("x"), py::arg("values"), py::arg("bias"),
        py::arg("y"), py::arg("crow"), py::arg("col"), py::arg("batch"), py::arg("rows"), py::arg("cols"),
        py::arg("x_batch_stride"), py::arg("x_feature_stride"), py::arg("y_batch_stride"), py::arg("y_feature_stride"),
        py::arg("relu"), py::arg("index_bits"), py::arg("dtype"), py::arg("threads"));
  m.def("csr_linear_backward", &csr_linear_backward, no_gil, py::arg("grad"), py::arg("activated"), py::arg("x"),
        py::arg("values"), py::arg("dx"), py::arg("dvalues"), py::arg("dbias"), py::arg("crow"), py::arg("col"),
        py::arg("ccol"), py::arg("row"), py::arg("perm"), py::arg("batch"), py::arg("rows"), py::arg("cols"),
        py::arg("grad_batch_stride"), py::arg("grad_feature_stride"), py::arg("activated_batch_stride"),
        py::arg("activated_feature_stride"), py::arg("x_batch_stride"), py::arg("x_feature_stride"),
        py::arg("dx_batch_stride"), py::arg("dx_feature_stride"), py::arg("index_bits"),
        py::arg("dtype"), py::arg("threads"));
  m.def("bsr_linear_forward", &bsr_linear_forward, no_gil, py::arg("x"), py::arg("values"), py::arg("mask"),
        py::arg("bias"), py::arg("y"), py::arg("crow"), py::arg("col"), py::arg("batch"), py::arg("rows"),
        py::arg("cols"), py::arg("block_rows"), py::arg("block_cols"), py::arg("x_batch_stride"),
        py::arg("x_feature_stride"), py::arg("y_batch_stride"), py::arg("y_feature_stride"), py::arg("relu"),
        py::arg("dtype"), py::arg("threads"));
  m.def("bsr_linear_backward", &bsr_linear_backward, no_gil, py::arg("grad"), py::arg("activated"),
        py::arg("x"), py::arg("values"), py::arg("mask"), py::arg("dx"), py::arg("dvalues"), py::arg("dbias"),
        py::arg("ccol"), py::arg("row"),
        py::arg("perm"), py::arg("batch"), py::arg("rows"), py::arg("cols"), py::arg("block_rows"),
        py::arg("block_cols"), py::arg("grad_batch_stride"), py::arg("grad_feature_stride"),
        py::arg("activated_batch_stride"), py::arg("activated_feature_stride"), py::arg("x_batch_stride"),
        py::arg("x_feature_stride"), py::arg("dx_batch_stride"), py::arg("dx_feature_stride"), py::arg("dtype"),
        py::arg("threads"));
  m.def("csr_conv2d_forward", &csr_conv2d_forward, no_gil, py::arg("x"), py::arg("values"), py::arg("bias"),
        py::arg("y"), py::arg("crow"), py::arg("col"), LTH_CONV_SIZES, py::arg("feature_major"), py::arg("relu"),
        py::arg("index_bits"), py::arg("dtype"), py::arg("threads"));
  m.def("bsr_conv2d_forward", &bsr_conv2d_forward, no_gil, py::arg("x"), py::arg("values"), py::arg("mask"),
        py::arg("bias"), py::arg("y"), py::arg("crow"), py::arg("col"), LTH_CONV_SIZES, py::arg("feature_major"),
        py::arg("relu"), py::arg("block_rows"), py::arg("block_cols"), py::arg("dtype"), py::arg("threads"));
  m.def("csr_conv2d_backward", &csr_conv2d_backward, no_gil, py::arg("grad"), py::arg("activated"), py::arg("x"),
        py::arg("values"), py::arg("dx"), py::arg("dvalues"), py::arg("dbias"), py::arg("ccol"), py::arg("row"),
        py::arg("perm"), LTH_CONV_SIZES, py::arg("grad_feature_major"), py::arg("x_feature_major"),
        py::arg("index_bits"), py::arg("dtype"), py::arg("threads"));
  m.def("bsr_conv2d_backward", &bsr_conv2d_backward, no_gil, py::arg("grad"), py::arg("activated"), py::arg("x"),
        py::arg("values"), py::arg("mask"), py::arg("dx"), py::arg("dvalues"), py::arg("dbias"), py::arg("ccol"),
        py::arg("row"), py::arg("perm"), LTH_CONV_SIZES, py::arg("grad_feature_major"), py::arg("x_feature_major"),
        py::arg("block_rows"), py::arg("block_cols"), py::arg("dtype"), py::arg("threads"));
  m.def("expand", &expand, no_gil, py::arg("values"), py::arg("bits"), py::arg("rank"), py::arg("dense"),
        py::arg("nnz"), py::arg("numel"), py::arg("width"), py::arg("threads"));
  m.def("compress", &compress, no_gil, py::arg("dense"), py::arg("bits"), py::arg("rank"), py::arg("values"),
        py::arg("nnz"), py::arg("numel"), py::arg("width"), py::arg("threads"));
  bind_rebuild(m);
  bind_reorder(m);
  m.def("isa", [] { return lth::name_of(lth::current_isa()); });
  m.def("isas", [] { return names_of(lth::runnable_isas()); });
  m.def("set_isa", &lth::set_isa, py::arg("name"));
  m.def("microkernels", &lth::microkernels);
  m.def("build_info", &build_info);
  m.def("trim", &lth::trim);
  m.def("fma_peak", &fma_peak, no_gil, py::arg("seconds"), py::arg("threads"));
  m.def("set_thread_grain", &set_thread_grain, py::arg("multiply_adds"));
}
