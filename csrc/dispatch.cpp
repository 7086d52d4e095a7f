// From the instruction set in use to its table of kernels, and the names of all of them.
#include <stdexcept>

#include "table.h"

namespace lth {

void add_names(std::vector<std::string>& names, const char* op, int rows, int tile, bool exists, int lanes,
               int bytes, const char* isa) {
  if (!exists) return;
  const char* const type = bytes == 2 ? "bf16_" : bytes == 4 ? "f32_" : "f64_";
  const std::string head = std::string(type) + op + "_" +
                           (rows > 0 ? std::to_string(rows) + "x" : "") + std::to_string(tile) + "x" +
                           std::to_string(lanes) + "_";
  for (const char* index : {"u16", "i32"}) {
    names.push_back(head + index + "__" + isa);
  }
}

const KernelTable* make_table(void (*fill_f32)(Kernels<float>&), void (*fill_f64)(Kernels<double>&),
                              void (*fill_bf16)(Bf16Kernels&)) {
  KernelTable* const table = new KernelTable;
  fill_f32(table->f32);
  fill_f64(table->f64);
  fill_bf16(table->bf16);
  return table;
}

const KernelTable& table_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return *avx512::table();
  if (isa == Isa::avx2) return *avx2::table();
#endif
#if defined(__aarch64__)
  if (isa == Isa::neon) return *neon::table();
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

const Bf16Kernels& bf16_kernels() { return table_of(current_isa()).bf16; }

std::vector<std::string> microkernels() {
  std::vector<std::string> names;
  for (Isa isa : built_isas()) {
    const KernelTable& table = table_of(isa);
    for (const auto* some : {&table.f32.names, &table.f64.names, &table.bf16.names}) {
      names.insert(names.end(), some->begin(), some->end());
    }
  }
  return names;
}

}  // namespace lth
