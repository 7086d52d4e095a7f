// The gradient in front of a ReLU that was computed with the product before it.

// values[i] = 0 where activated[i], what the ReLU gave, is not above zero; NaN there passes values[i] on, as in torch.
template <class T>
void gate(const T* activated, int64_t n, T* values) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes)
    V::store(values + i, V::gate(V::load(values + i), V::load(activated + i)));
  if (i == n) return;
  const int rest = static_cast<int>(n - i);
  V::store_part(values + i, V::gate(V::load_part(values + i, rest), V::load_part(activated + i, rest)), rest);
}
