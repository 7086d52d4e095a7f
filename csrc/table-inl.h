// Fills the KernelTable of the instruction set whose namespace and target region surround this file, from
// microkernels.def. The only other content of an instruction set is its Vec (simd-*-inl.h). Needs LTH_ISA, the set's
// name as a string.

template <class T, int Tile, class Index>
void add_spmm(IndexedKernels<T, Index>& k) {
  k.spmm[Tile] = &csr_spmm<T, Tile, Index>;
}

template <class T, int Tile, class Index>
void add_backward(IndexedKernels<T, Index>& k) {
  if constexpr (Tile <= Vec<T>::kBackwardTile) k.backward[Tile] = &csr_backward<T, Tile, Index, true>;
}

template <class T, int Tile, class Index>
void add_sddmm(IndexedKernels<T, Index>& k) {
  if constexpr (Tile <= Vec<T>::kBackwardTile) k.sddmm[Tile] = &csr_backward<T, Tile, Index, false>;
}

template <class T>
void fill(Kernels<T>& k) {
  k.lanes = Vec<T>::kLanes;
  k.spmm_tile = kMaxTile;
  k.backward_tile = Vec<T>::kBackwardTile;
  k.transpose = &transpose<T>;
  k.sum = &sum<T>;
  k.add_runs = &add_runs<T>;
#define LTH_MICROKERNEL(op, tile)     \
  add_##op<T, tile, uint16_t>(k.u16); \
  add_##op<T, tile, int32_t>(k.i32);  \
  add_names(k.names, #op, tile, k.u16.op[tile] != nullptr, Vec<T>::kLanes, sizeof(T), LTH_ISA);
#include "microkernels.def"
}

const KernelTable* table() {
  static const KernelTable* const instance = make_table(&fill<float>, &fill<double>);
  return instance;
}
