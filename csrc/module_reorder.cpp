// Bindings of what orders rows and columns, and of what moves activations into that order; see module.cpp.
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "module.h"
#include "permute.h"
#include "reorder.h"

namespace py = pybind11;

namespace lth {
namespace binding {
namespace {

// features, offsets, feature, amount, extent, width, weight: as in ReorderMember.
using Described = std::tuple<int64_t, Pointer, Pointer, Pointer, int64_t, int64_t, double>;

std::vector<ReorderMember> members_of(const std::vector<Described>& described, int64_t size) {
  std::vector<ReorderMember> members;
  for (const auto& [features, offsets, feature, amount, extent, width, weight] : described) {
    at_least("features", features, 0);
    at_least("extent", extent, 1);
    at_least("width", width, 1);
    not_null("offsets", offsets, true);
    const bool any = as<const int64_t>(offsets)[size] > 0;
    not_null("feature", feature, any);
    not_null("amount", amount, any);
    members.push_back({features, as<const int64_t>(offsets), as<const int32_t>(feature), as<const int32_t>(amount),
                       extent, width, weight});
  }
  return members;
}

void cluster(const std::vector<Described>& members, int64_t size, int64_t neighbours, Pointer order, Pointer near) {
  at_least("size", size, 0);
  at_least("neighbours", neighbours, 0);
  not_null("order", order, size > 0);
  not_null("near", near, size > 0 && neighbours > 0);
  reorder_cluster(members_of(members, size), size, neighbours, as<int64_t>(order), as<int32_t>(near));
}

int64_t refine(const std::vector<Described>& members, int64_t size, int64_t neighbours, Pointer near, int64_t sweeps,
               uint64_t seed, Pointer order) {
  at_least("size", size, 0);
  at_least("neighbours", neighbours, 0);
  at_least("sweeps", sweeps, 0);
  not_null("order", order, size > 0);
  not_null("near", near, size > 0 && neighbours > 0);
  return reorder_refine(members_of(members, size), size, neighbours, as<const int32_t>(near), sweeps, seed,
                        as<int64_t>(order));
}

void checked_permute(Pointer x, Pointer y, Pointer order, int64_t outer, int64_t features, int64_t inner,
                     int64_t element_bytes, int threads) {
  at_least("outer", outer, 0);
  at_least("features", features, 0);
  at_least("inner", inner, 0);
  at_least("threads", threads, 1);
  const bool any = outer > 0 && features > 0 && inner > 0;
  not_null("x", x, any);
  not_null("y", y, any);
  not_null("order", order, features > 0);
  permute(as<const void>(x), as<void>(y), as<const int32_t>(order), outer, features, inner, element_bytes, threads);
}

}  // namespace

void bind_reorder(py::module_& m) {
  m.def("reorder_cluster", &cluster, py::call_guard<py::gil_scoped_release>(), py::arg("members"), py::arg("size"),
        py::arg("neighbours"), py::arg("order"), py::arg("near"));
  m.def("reorder_refine", &refine, py::call_guard<py::gil_scoped_release>(), py::arg("members"), py::arg("size"),
        py::arg("neighbours"), py::arg("near"), py::arg("sweeps"), py::arg("seed"), py::arg("order"));
  m.def("permute", &checked_permute, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("y"),
        py::arg("order"), py::arg("outer"), py::arg("features"), py::arg("inner"), py::arg("element_bytes"),
        py::arg("threads"));
}

}  // namespace binding
}  // namespace lth
