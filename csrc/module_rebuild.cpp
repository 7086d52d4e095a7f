// Bindings of what changes the mask of a layer; see module.cpp.
#include "csr_rebuild.h"
#include "module.h"

namespace py = pybind11;

namespace lth {
namespace binding {
namespace {

template <class Index>
void rebuild(int64_t rows, int64_t cols, int64_t nnz, int64_t kept, int64_t grown_count, Pointer crow, Pointer col,
             Pointer keep, Pointer grown, Pointer new_crow, Pointer new_col, Pointer new_ccol, Pointer new_row,
             Pointer new_perm, Pointer source) {
  csr_rebuild<Index>({rows, cols, nnz, as<const int32_t>(crow), as<const Index>(col), as<const uint8_t>(keep), kept,
                      as<const int64_t>(grown), grown_count},
                     {as<int32_t>(new_crow), as<Index>(new_col), as<int32_t>(new_ccol), as<Index>(new_row),
                      as<int32_t>(new_perm), as<int32_t>(source)});
}

void checked_rebuild(Pointer crow, Pointer col, Pointer keep, Pointer grown, Pointer new_crow, Pointer new_col,
                     Pointer new_ccol, Pointer new_row, Pointer new_perm, Pointer source, int64_t rows, int64_t cols,
                     int64_t nnz, int64_t kept, int64_t grown_count, int index_bits) {
  check_index_bits(index_bits);
  at_least("rows", rows, 0);
  at_least("cols", cols, 0);
  at_least("nnz", nnz, 0);
  at_least("kept", kept, 0);
  at_least("grown_count", grown_count, 0);
  not_null("crow", crow, true);
  not_null("col", col, nnz > 0);
  not_null("keep", keep, nnz > 0);
  not_null("grown", grown, grown_count > 0);
  not_null("new_crow", new_crow, true);
  not_null("new_ccol", new_ccol, true);
  const bool any = kept + grown_count > 0;
  not_null("new_col", new_col, any);
  not_null("new_row", new_row, any);
  not_null("new_perm", new_perm, any);
  not_null("source", source, any);
  const auto run = index_bits == 16 ? &rebuild<uint16_t> : &rebuild<int32_t>;
  run(rows, cols, nnz, kept, grown_count, crow, col, keep, grown, new_crow, new_col, new_ccol, new_row, new_perm,
      source);
}

}  // namespace

void bind_rebuild(py::module_& m) {
  m.def("csr_rebuild", &checked_rebuild, py::call_guard<py::gil_scoped_release>(), py::arg("crow"), py::arg("col"),
        py::arg("keep"), py::arg("grown"), py::arg("new_crow"), py::arg("new_col"), py::arg("new_ccol"),
        py::arg("new_row"), py::arg("new_perm"), py::arg("source"), py::arg("rows"), py::arg("cols"), py::arg("nnz"),
        py::arg("kept"), py::arg("grown_count"), py::arg("index_bits"));
}

}  // namespace binding
}  // namespace lth
