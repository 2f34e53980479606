// The elementary functions by number (kElementaryNames), for tests of their accuracy and for measuring their speed.

template <class V>
BDAM_INLINE V elementary_function(int function, V x) {
  switch (function) {
    case 0:
      return exp2<V>(quiet(x));
    case 1:
      return softplus<V>(x, exp_neg_abs(x));
    case 2:
      return sigmoid<V>(x);
    default:
      return exp<V>(x);
  }
}
// `count` is a multiple of the width.
template <class V, int Function>
static void elementary_loop(const elem_t<V>* x, elem_t<V>* y, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes<V>) store<V>(y + i, elementary_function<V>(Function, load<V>(x + i)));
}
template <class V>
static void elementary_map(int function, const void* from, void* to, int64_t count) {
  const auto* x = static_cast<const elem_t<V>*>(from);
  auto* y = static_cast<elem_t<V>*>(to);
  switch (function) {
    case 0:
      return elementary_loop<V, 0>(x, y, count);
    case 1:
      return elementary_loop<V, 1>(x, y, count);
    case 2:
      return elementary_loop<V, 2>(x, y, count);
    default:
      return elementary_loop<V, 3>(x, y, count);
  }
}
