// From the instruction set in use to its table of kernels, and the names of all of them.
#include <stdexcept>

#include "table.h"

namespace lth {

void add_names(std::vector<std::string>& names, const char* op, int rows, int tile, bool exists, int lanes,
               int bytes, const char* isa) {
  if (!exists) return;
  const std::string head = std::string(bytes == 4 ? "f32_" : "f64_") + op + "_" +
                           (rows > 0 ? std::to_string(rows) + "x" : "") + std::to_string(tile) + "x" +
                           std::to_string(lanes) + "_";
  for (const char* index : {"u16", "i32"}) {
    names.push_back(head + index + "__" + isa);
  }
}

const KernelTable* make_table(void (*fill_f32)(Kernels<float>&), void (*fill_f64)(Kernels<double>&)) {
  KernelTable* const table = new KernelTable;
  fill_f32(table->f32);
  fill_f64(table->f64);
  return table;
}

const KernelTable& table_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return *avx512::table();
  if (isa == Isa::avx2) return *avx2::table();
#endif
  if (isa == Isa::scalar) return *scalar::table();
  throw std::invalid_argument("isa: this build has no kernels for '" + name_of(isa) + "'");
}

template <>
const Kernels<float>& kernels<float>() {
  return table_of(current_isa()).f32;
}

template <>
const Kernels<double>& kernels<double>() {
  return table_of(current_isa()).f64;
}

std::vector<std::string> microkernels() {
  std::vector<std::string> names;
  for (Isa isa : built_isas()) {
    const KernelTable& table = table_of(isa);
    names.insert(names.end(), table.f32.names.begin(), table.f32.names.end());
    names.insert(names.end(), table.f64.names.begin(), table.f64.names.end());
  }
  return names;
}

}  // namespace lth
