// Fills the KernelTable of the instruction set whose namespace surrounds this file, from microkernels.def. The only other
// content of an instruction set is its Vec (simd-*-inl.h). Needs LTH_ISA, the set's name as a string. It stands outside
// the set's target region, for tables are filled on every processor, to name the microkernels of all sets.

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

template <class T, int Tile, class Index>
void add_scatter(IndexedKernels<T, Index>& k) {
  k.scatter[Tile] = &csr_scatter<T, Tile, Index>;
}

template <class T, int L, class Index>
void add_few(IndexedKernels<T, Index>& k) {
  if constexpr (L < Vec<T>::kLanes) k.few[L] = &csr_few<T, L, Index, T>;
}

template <class T, int L, class Index>
void add_fewgrad(IndexedKernels<T, Index>& k) {
  if constexpr (L < Vec<T>::kLanes) k.fewgrad[L] = &csr_fewgrad<T, L, Index>;
}

template <class T, int R, int Tile, class Index>
void add_bsr_spmm(IndexedKernels<T, Index>& k) {
  if constexpr (R * Tile + Tile + 1 <= Vec<T>::kRegisters) k.bsr_spmm[R][Tile] = &bsr_spmm<T, R, Tile, Index>;
}

template <class T, int R, int Tile, class Index>
void add_bsr_backward(IndexedKernels<T, Index>& k) {
  if constexpr (Tile <= Vec<T>::kBackwardTile) k.bsr_backward[R][Tile] = &bsr_backward<T, R, Tile, Index, true>;
}

template <class T, int R, int Tile, class Index>
void add_bsr_sddmm(IndexedKernels<T, Index>& k) {
  if constexpr (Tile <= Vec<T>::kBackwardTile) k.bsr_sddmm[R][Tile] = &bsr_backward<T, R, Tile, Index, false>;
}

template <class T>
void fill(Kernels<T>& k) {
  k.lanes = Vec<T>::kLanes;
  k.spmm_tile = kMaxTile;
  k.backward_tile = Vec<T>::kBackwardTile;
  k.scatter_tile = 4;
  k.bsr_outer = &bsr_outer<T>;
  k.bsr_gemv = &bsr_gemv<T, T>;
  k.transpose = &transpose<T, T, T>;
  k.copy_runs = &copy_runs<T, T, T>;
  k.shift_rows = &shift_rows<T>;
  k.sum = &sum<T>;
  k.gate = &gate<T>;
  k.transpose_gradient = &transpose_gradient<T>;
  k.copy_gradient = &copy_gradient<T>;
  k.sum_gradient = &sum_gradient<T>;
#define LTH_MICROKERNEL(op, tile)     \
  add_##op<T, tile, uint16_t>(k.u16); \
  add_##op<T, tile, int32_t>(k.i32);  \
  add_names(k.names, "csr_" #op, 0, tile, k.u16.op[tile] != nullptr, Vec<T>::kLanes, sizeof(T), LTH_ISA);
#define LTH_FEW(op, samples)             \
  add_##op<T, samples, uint16_t>(k.u16); \
  add_##op<T, samples, int32_t>(k.i32);  \
  add_names(k.names, "csr_" #op, 0, 1, k.u16.op[samples] != nullptr, samples, sizeof(T), LTH_ISA);
#define LTH_BSR_MICROKERNEL(op, rows, tile) \
  add_##op<T, rows, tile, uint16_t>(k.u16); \
  add_##op<T, rows, tile, int32_t>(k.i32);  \
  add_names(k.names, #op, rows, tile, k.u16.op[rows][tile] != nullptr, Vec<T>::kLanes, sizeof(T), LTH_ISA);
#include "microkernels.def"
  for (int rows = 1; rows <= kMaxPanel; ++rows) {
    for (int tile = 1; tile <= kMaxTile; ++tile) {
      if (k.i32.bsr_spmm[rows][tile] != nullptr) k.bsr_tile[rows] = tile;
    }
  }
}

template <int L>
void add_bf16_few(Bf16Kernels& k) {
  if constexpr (L < Vec<float>::kLanes) {
    k.few_u16[L] = &csr_few<float, L, uint16_t, Bf16>;
    k.few_i32[L] = &csr_few<float, L, int32_t, Bf16>;
  }
  add_names(k.names, "csr_few", 0, 1, k.few_u16[L] != nullptr, L, sizeof(Bf16), LTH_ISA);
}

inline void fill_bf16(Bf16Kernels& k) {
  add_bf16_few<1>(k);
  add_bf16_few<2>(k);
  add_bf16_few<4>(k);
  add_bf16_few<8>(k);
  k.bsr_gemv = &bsr_gemv<float, Bf16>;
  k.widen_transpose = &transpose<float, Bf16, float>;
  k.narrow_transpose = &transpose<float, float, Bf16>;
  k.widen_runs = &copy_runs<float, Bf16, float>;
  k.narrow_runs = &copy_runs<float, float, Bf16>;
  k.transpose = &transpose<float, Bf16, Bf16>;
  k.copy_runs = &copy_runs<float, Bf16, Bf16>;
  fill_dot(k);
}

const KernelTable* table() {
  static const KernelTable* const instance = make_table(&fill<float>, &fill<double>, &fill_bf16);
  return instance;
}
