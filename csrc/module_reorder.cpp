// Bindings of what orders rows and columns; see module.cpp.
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "module.h"
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

}  // namespace

void bind_reorder(py::module_& m) {
  m.def("reorder_cluster", &cluster, py::call_guard<py::gil_scoped_release>(), py::arg("members"), py::arg("size"),
        py::arg("neighbours"), py::arg("order"), py::arg("near"));
  m.def("reorder_refine", &refine, py::call_guard<py::gil_scoped_release>(), py::arg("members"), py::arg("size"),
        py::arg("neighbours"), py::arg("near"), py::arg("sweeps"), py::arg("seed"), py::arg("order"));
}

}  // namespace binding
}  // namespace lth
