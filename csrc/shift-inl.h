// Rows of pixels moved sideways into strips: what a tap to the left or right reads, in the lanes of the output that
// reads it, with zeros where that is padding.

// Columns [j, j + kLanes) of all rows. Edges are masked loads, which touch nothing beyond the row.
template <class T>
void shift_column(const T* src, int64_t src_pitch, int64_t rows, int first, int last, T* dst, int64_t dst_pitch,
                  int wide) {
  using V = Vec<T>;
  if (first == 0 && last == V::kLanes) {
    for (int64_t r = 0; r < rows; ++r) V::store(dst + r * dst_pitch, V::load(src + r * src_pitch));
  } else if (wide == V::kLanes) {
    for (int64_t r = 0; r < rows; ++r) V::store(dst + r * dst_pitch, V::load_between(src + r * src_pitch, first, last));
  } else {
    for (int64_t r = 0; r < rows; ++r)
      V::store_part(dst + r * dst_pitch, V::load_between(src + r * src_pitch, first, last), wide);
  }
}

template <class T>
void shift_rows(const T* src, int64_t src_pitch, int64_t rows, int64_t lead, int64_t count, int64_t step, T* dst,
                int64_t dst_pitch, int64_t wide) {
  constexpr int64_t kL = Vec<T>::kLanes;
  if (step > 1) {
    for (int64_t r = 0; r < rows; ++r, src += src_pitch, dst += dst_pitch) {
      for (int64_t i = 0; i < lead; ++i) dst[i] = T(0);
      for (int64_t i = 0; i < count; ++i) dst[lead + i] = src[i * step];
      for (int64_t i = lead + count; i < wide; ++i) dst[i] = T(0);
    }
    return;
  }
  if (count == wide && src_pitch == wide && dst_pitch == wide) {  // nothing moves, and no row ends before the last
    copy_runs(src, rows * wide, 1, rows * wide, dst, rows * wide, rows * wide);
    return;
  }
  const auto within = [](int64_t i, int64_t most) { return static_cast<int>(i < 0 ? 0 : i < most ? i : most); };
  for (int64_t j = 0; j < wide; j += kL) {
    const int first = within(lead - j, kL), last = within(lead + count - j, kL);
    shift_column(src + j - lead, src_pitch, rows, first, last, dst + j, dst_pitch, within(wide - j, kL));
  }
}
