// Vector types and elementary functions, included once per instruction set by foreach_isa.h. A vector V is a GCC vector
// of float or double; its width must never exceed that of the instruction set (25 ms instead of 2 when it does).
// Accuracy, largest error in ulp over the whole range (float): exp2 1.1, exp 1.2, softplus 3.1, sigmoid 2.7, bounded by
// tests/ops/test_elementary.py. Double goes through libm.
#define BDAM_INLINE static inline __attribute__((always_inline))
#define BDAM_UNROLL _Pragma("GCC unroll 16")

template <class T, int W>
struct VecType {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <class T, int W>
using vec = typename VecType<T, W>::type;
template <class V>
using elem_t = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;
template <class V>
constexpr int lanes = sizeof(V) / sizeof(elem_t<V>);
template <class V>
constexpr bool is_double = sizeof(elem_t<V>) == 8;
template <class V>
using int_vec = vec<std::conditional_t<is_double<V>, int64_t, int32_t>, lanes<V>>;

template <class V>
BDAM_INLINE V set1(elem_t<V> x) {
  return x - V{};  // one broadcast; 0 + x is an addition before it, since that turns -0 into 0
}

// --- memory: conversion to and from every element type, rounding to nearest even
template <int W>
BDAM_INLINE vec<float, W> widen(vec<uint16_t, W> bits, BFloat16) {
  return (vec<float, W>)(__builtin_convertvector(bits, vec<uint32_t, W>) << 16);
}
template <int W>
BDAM_INLINE vec<uint16_t, W> narrow(vec<float, W> v, BFloat16) {  // a NaN keeps its top bits and gets a quiet bit
  vec<uint32_t, W> b = (vec<uint32_t, W>)v, r = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  r = v == v ? r : (b >> 16) | 0x40u;
  return __builtin_convertvector(r, vec<uint16_t, W>);
}
template <int W>
BDAM_INLINE vec<float, W> widen(vec<uint16_t, W> bits,
                                Float16) {  // moves the fields, then the exponent by a factor of 2^112
  using U = vec<uint32_t, W>;
  U h = __builtin_convertvector(bits, U), magnitude = (h & 0x7fffu) << 13;
  U scaled = (U)((vec<float, W>)magnitude * 0x1p112f);
  scaled |= magnitude >= 0x0f800000u ? U{} + 0x7f800000u : U{};
  return (vec<float, W>)(scaled | (h & 0x8000u) << 16);
}
template <int W>
BDAM_INLINE vec<uint16_t, W> narrow(vec<float, W> v, Float16) {
  using U = vec<uint32_t, W>;
  U b = (U)v, magnitude = b & 0x7fffffffu;
  U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  U subnormal = (U)((vec<float, W>)magnitude + 0.5f) - 0x3f000000u;  // adding 0.5 puts the rounding at 2^-24
  U r = magnitude < 0x38800000u ? subnormal : normal;
  r = magnitude >= 0x47800000u ? U{} + 0x7c00u : r;  // from 65536 on
  r = magnitude > 0x7f800000u ? U{} + 0x7e00u : r;
  return __builtin_convertvector(r | ((b >> 16) & 0x8000u), vec<uint16_t, W>);
}

template <class V, class S>
BDAM_INLINE V load(const S* p) {
  constexpr int W = lanes<V>;
  if constexpr (sizeof(S) == 2) {
    vec<uint16_t, W> bits;
    std::memcpy(&bits, p, sizeof bits);
    vec<float, W> v = widen<W>(bits, S{});
    if constexpr (is_double<V>)
      return __builtin_convertvector(v, V);
    else
      return v;
  } else {
    vec<S, W> v;
    std::memcpy(&v, p, sizeof v);
    if constexpr (std::is_same_v<S, elem_t<V>>)
      return v;
    else
      return __builtin_convertvector(v, V);
  }
}
template <class V, class S>
BDAM_INLINE void store(S* p, V v) {
  constexpr int W = lanes<V>;
  if constexpr (sizeof(S) == 2) {
    vec<float, W> f;
    if constexpr (is_double<V>)
      f = __builtin_convertvector(v, vec<float, W>);
    else
      f = v;
    vec<uint16_t, W> bits = narrow<W>(f, S{});
    std::memcpy(p, &bits, sizeof bits);
  } else if constexpr (std::is_same_v<S, elem_t<V>>) {
    std::memcpy(p, &v, sizeof v);
  } else {
    vec<S, W> s = __builtin_convertvector(v, vec<S, W>);
    std::memcpy(p, &s, sizeof s);
  }
}
// The first n lanes; the others read as zero and are not written.
template <class V, class S>
BDAM_INLINE V load_n(const S* p, int n) {
  if (n >= lanes<V>) return load<V>(p);
  S tail[lanes<V>] = {};
  std::memcpy(tail, p, n * sizeof(S));
  return load<V>(tail);
}
template <class V, class S>
BDAM_INLINE void store_n(S* p, V v, int n) {
  if (n >= lanes<V>) return store<V>(p, v);
  S tail[lanes<V>];
  store<V>(tail, v);
  std::memcpy(p, tail, n * sizeof(S));
}

// --- comparisons. max(a, b) = a < b ? b : a, so a NaN in a stays. GCC 12 makes a compare and a blend of the plain form
// (scan forward 6 to 15 % slower), hence the intrinsics.
template <class V>
BDAM_INLINE V max(V a, elem_t<V> bound) {
  V b = set1<V>(bound);
#ifdef BDAM_X86_DISPATCH
  if constexpr (!is_double<V> && lanes<V> == 16)
    return (V)_mm512_max_ps((__m512)b, (__m512)a);
  else if constexpr (!is_double<V> && lanes<V> == 8)
    return (V)_mm256_max_ps((__m256)b, (__m256)a);
  else if constexpr (!is_double<V> && lanes<V> == 4)
    return (V)_mm_max_ps((__m128)b, (__m128)a);
#endif
  return a < b ? b : a;
}
template <class V>
BDAM_INLINE V min(V a, elem_t<V> bound) {
  V b = set1<V>(bound);
#ifdef BDAM_X86_DISPATCH
  if constexpr (!is_double<V> && lanes<V> == 16)
    return (V)_mm512_min_ps((__m512)b, (__m512)a);
  else if constexpr (!is_double<V> && lanes<V> == 8)
    return (V)_mm256_min_ps((__m256)b, (__m256)a);
  else if constexpr (!is_double<V> && lanes<V> == 4)
    return (V)_mm_min_ps((__m128)b, (__m128)a);
#endif
  return a > b ? b : a;
}
template <class V>
BDAM_INLINE V abs(V a) {
  return (V)((int_vec<V>)a & std::numeric_limits<elem_t<int_vec<V>>>::max());
}
// --- elementary functions
template <class V>
BDAM_INLINE V map_libm(V x, double (*f)(double)) {
  for (int i = 0; i < lanes<V>; ++i) x[i] = f(x[i]);
  return x;
}
constexpr float kRoundingBias = 12582912.f;  // 1.5 * 2^23: adding it leaves round(t) in the low bits

// 16 lanes round and scale by a power of two in one instruction each, the latter with exact zero and infinity at the
// ends.
#ifdef BDAM_X86_DISPATCH
template <class V>
constexpr bool kScaledExp = !is_double<V> && lanes<V> == 16;
template <class V>
BDAM_INLINE V round_even(V t) {
  return (V)_mm512_roundscale_ps((__m512)t, 0);
}
template <class V>
BDAM_INLINE V scale_exponent(V p, V n) {
  return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#else
template <class V>
constexpr bool kScaledExp = false;
#endif

// 2^f on [-1/2, 1/2], minimax of degree 6 with the constant fixed to 1 so that 2^0 is exactly 1: relative error 6.6e-8,
// where degree 5 has 1.5e-7 and doubles the error of dA.
template <class V>
BDAM_INLINE V exp2_polynomial(V f) {
  V p = f * 1.532761235e-04f + 1.339081442e-03f;
  p = p * f + 9.618503973e-03f;
  p = p * f + 5.550359935e-02f;
  p = p * f + 2.402264774e-01f;
  p = p * f + 6.931471825e-01f;
  return p * f + 1.f;
}
// Replaces every NaN by the canonical one, whose low bits are zero: exp2 needs that of its argument where it adds to
// the exponent field.
template <class V>
BDAM_INLINE V quiet(V a) {
  if constexpr (kScaledExp<V>)
    return a;
  else
    return a == a ? a : set1<V>(std::numeric_limits<elem_t<V>>::quiet_NaN());
}
// 2^t. Reaches 0 below -127 and infinity from 128 on. A NaN must be canonical (quiet()) to stay one. Without Upper the
// caller knows that t < 128, which saves one operation of ten on narrow vectors.
template <class V, bool Upper = true>
BDAM_INLINE V exp2(V t) {
  if constexpr (is_double<V>) {
    return map_libm(t, std::exp2);
  } else {
    if constexpr (kScaledExp<V>) {
      V r = round_even(t);
      return scale_exponent(exp2_polynomial<V>(t - r), r);
    }
    // Adding m to the exponent field of p in [0.7, 1.42): at t = 128 this gives exactly infinity, at -127 exactly zero.
    t = max(t, -127.f);
    if constexpr (Upper) t = min(t, 128.f);
    V m = t + kRoundingBias, p = exp2_polynomial<V>(t - (m - kRoundingBias));
    return (V)((int_vec<V>)p + ((int_vec<V>)m << 23));
  }
}
// e^x for x in [-87.33, 88.72]. ln 2 is subtracted in two parts, the first of which times any exponent is exact: right
// without FMA too.
template <class V>
BDAM_INLINE V exp_in_range(V x) {
  V m, r;
  if constexpr (kScaledExp<V>)
    r = m = round_even(x * 1.44269504088896341f);
  else
    m = x * 1.44269504088896341f + kRoundingBias, r = m - kRoundingBias;
  V f = x - r * 0.693359375f + r * 2.12194440e-4f;
  V p = f * 1.381945913e-03f + 8.368681185e-03f;
  p = p * f + 4.166828096e-02f;
  p = p * f + 1.666652113e-01f;
  p = p * f + 4.999999404e-01f;
  p = p * f + 1.f;
  p = p * f + 1.f;
  if constexpr (kScaledExp<V>)
    return scale_exponent(p, r);
  else
    return (V)((int_vec<V>)p + ((int_vec<V>)m << 23));
}
// e^x, zero below the smallest normal number
template <class V>
BDAM_INLINE V exp(V x) {
  if constexpr (is_double<V>) {
    return map_libm(x, std::exp);
  } else {
    V result = exp_in_range(min(max(x, -87.33f), 88.72f));
    result = x < -87.33f ? V{} : result;
    result = x > 88.72f ? set1<V>(std::numeric_limits<float>::infinity()) : result;
    return x == x ? result : x;
  }
}
// 1 / d for d in [1, 4]. 16 lanes complete an estimate by one Newton step, in a third of the time of their division.
template <class V>
BDAM_INLINE V reciprocal(V d) {
#ifdef BDAM_X86_DISPATCH
  if constexpr (!is_double<V> && lanes<V> == 16) {
    V r = (V)_mm512_rcp14_ps((__m512)d);
    return r + r * (1.f - d * r);
  }
#endif
  return elem_t<V>(1) / d;
}
// e^-|x|, in [0, 1]: softplus and sigmoid of the same x share it. Of a NaN it is some number: softplus and silu bring
// the NaN back, as they have x itself in them.
template <class V>
BDAM_INLINE V exp_neg_abs(V x) {
  V y = (V)((int_vec<V>)x | std::numeric_limits<elem_t<int_vec<V>>>::min());
  if constexpr (is_double<V>)
    return map_libm(y, std::exp);
  else
    return y < -87.33f ? V{} : exp_in_range(max(y, -87.33f));
}
// log(1 + s) for s in [0, 1], as 2 atanh(s / (2 + s)): relative error 1e-7, no cancellation for small s.
template <class V>
BDAM_INLINE V log1p01(V s) {
  if constexpr (is_double<V>) {
    return map_libm(s, std::log1p);
  } else {
    V w = s * reciprocal<V>(s + 2.f), q = w * w;
    V p = q * 2.800712883e-01f + 2.800296247e-01f;
    p = p * q + 4.002144039e-01f;
    p = p * q + 6.666641831e-01f;
    return w * (p * q) + 2.f * w;
  }
}
// log(1 + e^x), linear above 20 like torch.nn.functional.softplus; s = exp_neg_abs(x).
template <class V>
BDAM_INLINE V softplus(V x, V s) {
  V r = max(x, elem_t<V>(0)) + log1p01<V>(s);
  return x > elem_t<V>(20) ? x : r;
}
template <class V>
BDAM_INLINE V sigmoid(V x, V s) {
  V r = reciprocal<V>(s + elem_t<V>(1));
  return x < elem_t<V>(0) ? s * r : r;
}
template <class V>
BDAM_INLINE V sigmoid(V x) {
  return sigmoid<V>(x, exp_neg_abs(x));
}
// d silu(x) / dx, given q = sigmoid(x)
template <class V>
BDAM_INLINE V silu_derivative(V x, V q) {
  return q * (elem_t<V>(1) + x * (elem_t<V>(1) - q));
}

// --- between lanes
template <class V, class Pattern, size_t... I>
BDAM_INLINE V shuffle(V a, V b, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Pattern::at(I)...);
#else
  return __builtin_shuffle(a, b, int_vec<V>{Pattern::at(I)...});
#endif
}
template <class V, class Pattern>
BDAM_INLINE V shuffle(V a, V b) {
  return shuffle<V, Pattern>(a, b, std::make_index_sequence<lanes<V>>{});
}
// Runs of S lanes: the even runs of a, then those of b (Odd = 0), or the odd ones (Odd = 1).
template <int W, int S, int Odd>
struct RunPattern {
  static constexpr int at(int i) { return i % (W / 2) / S * 2 * S + i % S + i / (W / 2) * W + Odd * S; }
};
// Sums neighbouring runs of S lanes: W/2 partial sums of a in the lower half, of b in the upper half, in a fixed order.
template <class V, int S>
BDAM_INLINE V fold(V a, V b) {
  return shuffle<V, RunPattern<lanes<V>, S, 0>>(a, b) + shuffle<V, RunPattern<lanes<V>, S, 1>>(a, b);
}
// The sum of the first J elements at p, by halves.
template <int J, class T>
BDAM_INLINE T sum_by_halves(const T* p) {
  T s[J];
  std::memcpy(s, p, sizeof s);
  BDAM_UNROLL
  for (int w = J / 2; w; w /= 2)
    for (int i = 0; i < w; ++i) s[i] += s[i + w];
  return s[0];
}
template <class V>
BDAM_INLINE elem_t<V> hsum(V v) {
  elem_t<V> s[lanes<V>];
  store<V>(s, v);
  return sum_by_halves<lanes<V>>(s);
}
template <int W, int S, int Upper>
struct TransposePattern {
  static constexpr int at(int i) { return Upper ? (i & S ? W + i : i + S) : (i & S ? W + i - S : i); }
};
template <class V, int S>
BDAM_INLINE void transpose_stage(V* rows) {
  constexpr int W = lanes<V>;
  BDAM_UNROLL
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    V a = rows[i], b = rows[i + S];
    rows[i] = shuffle<V, TransposePattern<W, S, 0>>(a, b);
    rows[i + S] = shuffle<V, TransposePattern<W, S, 1>>(a, b);
  }
}
// The W x W matrix in rows[0..W) becomes its transpose.
template <class V>
BDAM_INLINE void transpose(V* rows) {
  constexpr int W = lanes<V>;
  transpose_stage<V, 1>(rows);
  if constexpr (W > 2) transpose_stage<V, 2>(rows);
  if constexpr (W > 4) transpose_stage<V, 4>(rows);
  if constexpr (W > 8) transpose_stage<V, 8>(rows);
}
