// Rows of pixels moved sideways into strips: what a tap to the left or right reads, in the lanes of the output that
// reads it, with zeros where that is padding.

// kLanes columns of all rows, Step apart in src, zero outside of [first, last), the first `wide` of them written. Loads
// are masked, so that they touch nothing beyond the row.
template <class T, int Step>
void shift_column(const T* src, int64_t src_pitch, int64_t rows, int first, int last, T* dst, int64_t dst_pitch,
                  int wide) {
  using V = Vec<T>;
  constexpr int kL = V::kLanes;
  const auto within = [](int i) { return i < 0 ? 0 : i < kL ? i : kL; };
  const int begin = within(Step * first), end = first < last ? Step * (last - 1) + 1 : 0;
  const auto row = [&](const T* p) {
    if constexpr (Step == 1) return V::load_between(p, begin, within(end));
    const typename V::reg low = V::load_between(p, begin, within(end));
    return V::even(low, V::load_between(p + kL, within(Step * first - kL), within(end - kL)));
  };
  if (Step == 1 && first == 0 && last == kL) {
    for (int64_t r = 0; r < rows; ++r) V::store(dst + r * dst_pitch, V::load(src + r * src_pitch));
  } else if (wide == kL) {
    for (int64_t r = 0; r < rows; ++r) V::store(dst + r * dst_pitch, row(src + r * src_pitch));
  } else {
    for (int64_t r = 0; r < rows; ++r) V::store_part(dst + r * dst_pitch, row(src + r * src_pitch), wide);
  }
}

template <class T, int Step>
void shift_columns(const T* src, int64_t src_pitch, int64_t rows, int64_t lead, int64_t count, T* dst,
                   int64_t dst_pitch, int64_t wide) {
  constexpr int64_t kL = Vec<T>::kLanes;
  const auto within = [](int64_t i) { return static_cast<int>(i < 0 ? 0 : i < kL ? i : kL); };
  for (int64_t j = 0; j < wide; j += kL) {
    shift_column<T, Step>(src + (j - lead) * Step, src_pitch, rows, within(lead - j), within(lead + count - j), dst + j,
                          dst_pitch, within(wide - j));
  }
}

template <class T>
void shift_rows(const T* src, int64_t src_pitch, int64_t rows, int64_t lead, int64_t count, int64_t step, T* dst,
                int64_t dst_pitch, int64_t wide) {
  if (step == 1 && count == wide && src_pitch == wide && dst_pitch == wide && wide % Vec<T>::kLanes != 0) {
    // Nothing moves, and rows end between registers, but without gaps.
    __builtin_memcpy(dst, src, static_cast<size_t>(rows * wide) * sizeof(T));
  } else if (step == 1) {
    shift_columns<T, 1>(src, src_pitch, rows, lead, count, dst, dst_pitch, wide);
  } else if (step == 2) {
    shift_columns<T, 2>(src, src_pitch, rows, lead, count, dst, dst_pitch, wide);
  } else {
    for (int64_t r = 0; r < rows; ++r, src += src_pitch, dst += dst_pitch) {
      for (int64_t i = 0; i < lead; ++i) dst[i] = T(0);
      for (int64_t i = 0; i < count; ++i) dst[lead + i] = src[i * step];
      for (int64_t i = lead + count; i < wide; ++i) dst[i] = T(0);
    }
  }
}
