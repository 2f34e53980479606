// Runs the tasks of HSIC on PyTorch's own threads. The division into tasks, and the order of every sum, depend on
// shapes only, so that the bits do not depend on the number of threads.
#include "hsic/hsic.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

#define BDAM_ISA_SOURCE "hsic/cpu/kernel.inl"
#include "common/foreach_isa.h"

namespace bdam_fast {

namespace {
template <class F>
void parallel(int64_t tasks, int64_t multiplications_per_task, const F& f) {
  // Less than about 10 us of work is not worth waking a thread for.
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, multiplications_per_task));
  if (tasks <= grain) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

void centre(const HsicParams& p, int which) {
  const HsicSide& s = p.side[which];
  parallel(p.batch * s.centre_tasks(), 4 * p.samples * kHsicCentre,
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_centre, p, which, i); });
  if (s.norms)
    parallel(p.batch * p.samples, 8 * s.depth, [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_norm, p, which, i); });
}

// The median of the squared distances |x_i - x_j|^2, i < j, of one item: the lower of the two in the middle. T float
// and Bits uint32_t, or double and uint64_t: bits of numbers >= 0 are ordered as the numbers are, and those of a NaN
// come last.
template <class T, class Bits>
class MedianDistance {
 public:
  MedianDistance(const HsicParams& p, int which, int64_t b)
      : p_(p), which_(which), b_(b), rank_((p.samples * (p.samples - 1) / 2 - 1) / 2) {}

  T find() {
    const Bits bits = p_.samples * (p_.samples - 1) / 2 <= kHsicDirectPairs ? select() : count();
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  // Calls f with the bits of every distance of the tile row i.
  template <class F>
  void visit(int64_t i, std::vector<T>& tile, const F& f) const {
    for (int64_t j = i; j < p_.tiles(); ++j) {
      void* out = tile.data();
      BDAM_FOR_ISA(p_.is_double, hsic_distance_tile, p_, which_, b_, i, j, out);
      const int64_t ni = std::min(p_.tile, p_.samples - i * p_.tile), nj = std::min(p_.tile, p_.samples - j * p_.tile);
      for (int64_t r = 0; r < ni; ++r)
        for (int64_t c = i == j ? r + 1 : 0; c < nj; ++c) {
          Bits bits;
          std::memcpy(&bits, tile.data() + r * p_.tile + c, sizeof bits);
          f(bits);
        }
    }
  }

  Bits select() const {
    std::vector<T> tile(p_.tile * p_.tile);
    std::vector<Bits> all;
    all.reserve(p_.samples * (p_.samples - 1) / 2);
    for (int64_t i = 0; i < p_.tiles(); ++i) visit(i, tile, [&](Bits bits) { all.push_back(bits); });
    std::nth_element(all.begin(), all.begin() + rank_, all.end());
    return all[rank_];
  }

  // Sixteen bits a pass over all distances, counted in chunks of tile rows: memory does not grow with N.
  Bits count() {
    constexpr int64_t kBins = 1 << 16, kChunks = 16;
    std::vector<std::vector<T>> tiles(kChunks, std::vector<T>(p_.tile * p_.tile));
    std::vector<int64_t> counts(kChunks * kBins);
    Bits prefix = 0;
    for (int shift = sizeof(Bits) * 8 - 16; shift >= 0; shift -= 16) {
      std::fill(counts.begin(), counts.end(), 0);
      parallel(kChunks, 1 << 20, [&](int64_t chunk) {
        int64_t* own = counts.data() + chunk * kBins;
        for (int64_t i = chunk; i < p_.tiles(); i += kChunks)
          visit(i, tiles[chunk], [&](Bits bits) {
            if ((bits >> shift) >> 16 == prefix) ++own[(bits >> shift) & (kBins - 1)];
          });
      });
      int64_t bin = 0, before = 0;
      for (;; ++bin) {
        int64_t here = 0;
        for (int64_t chunk = 0; chunk < kChunks; ++chunk) here += counts[chunk * kBins + bin];
        if (before + here > rank_) break;
        before += here;
      }
      rank_ -= before;
      prefix = static_cast<Bits>(prefix << 16 | static_cast<Bits>(bin));
    }
    return prefix;
  }

  const HsicParams& p_;
  int which_;
  int64_t b_, rank_;
};

// Mean of |x_i - x_j|^2 over i < j: 2 / (N - 1) times the sum of the norms, as x is centred.
template <class T>
double mean_distance(const HsicParams& p, const HsicSide& s, int64_t b) {
  double sum = 0;
  for (int64_t i = 0; i < p.samples; ++i) sum += static_cast<const T*>(s.norms)[b * p.samples + i];
  return 2 * sum / static_cast<double>(p.samples - 1);
}

// sigma: sqrt(m / 2) for the median m; for the mean if that is zero; 1 if that is, too. And t at m, not at the mean, of
// which a few far rows may be nearly all: then t would be far from what most pairs have.
template <class T, class Bits>
void find_sigma(const HsicParams& p, int which, int64_t b) {
  const HsicSide& s = p.side[which];
  double middle = MedianDistance<T, Bits>(p, which, b).find();
  if (middle == 0) middle = mean_distance<T>(p, s, b);
  T* width = static_cast<T*>(s.width) + b * p.saved_stride;
  width[0] = static_cast<T>(middle == 0 ? 1.0 : std::sqrt(middle / 2));
  width[1] = static_cast<T>(middle == 0 ? 0.0 : -1.0);
}

template <class T>
void find_shift(const HsicParams& p, const HsicSide& s, int64_t b) {
  T* width = static_cast<T*>(s.width) + b * p.saved_stride;
  const double sigma = width[0];
  width[1] = static_cast<T>(std::max(kHsicLeast, -0.5 * mean_distance<T>(p, s, b) / (sigma * sigma)));
}

void find_sigmas(const HsicParams& p, int which) {
  auto one = [&](int64_t b) {
    if (p.is_double)
      find_sigma<double, uint64_t>(p, which, b);
    else
      find_sigma<float, uint32_t>(p, which, b);
  };
  const int64_t pairs = p.samples * (p.samples - 1) / 2;
  if (pairs <= kHsicDirectPairs)
    parallel(p.batch, pairs * p.side[which].depth, one);
  else
    for (int64_t b = 0; b < p.batch; ++b) one(b);  // its passes run in parallel themselves
}

// <K, L>, and for the estimators that need them the row sums of both kernel matrices, into the value.
template <class T>
double combine(const HsicParams& p, int64_t b) {
  double product = 0, cross = 0, total[2] = {0, 0};
  for (int64_t i = 0; i < p.partials(); ++i) product += p.partial[b * p.partials() + i];
  if (p.form == HsicForm::gaussian || p.unbiased)
    for (int64_t i = 0; i < p.samples; ++i) {
      double r[2];
      for (int k = 0; k < 2; ++k)
        r[k] = p.form == HsicForm::gaussian ? static_cast<const T*>(p.side[k].sums)[b * p.saved_stride + i]
                                            : -static_cast<const T*>(p.side[k].norms)[b * p.samples + i];
      cross += r[0] * r[1];
      for (int k = 0; k < 2; ++k) total[k] += r[k];
      if (p.form == HsicForm::features) product -= r[0] * r[1];  // |M|^2 has the diagonal in it
    }
  return p.scale * (product - p.cross * cross + p.product_scale * total[0] * total[1]);
}

void gram_tile(const HsicParams& p, int which, int64_t task) {
  BDAM_FOR_ISA(p.is_double, hsic_gram_tile, p, which, task);
}
void gram_product(const HsicParams& p, int64_t task) { BDAM_FOR_ISA(p.is_double, hsic_gram_product, p, task); }

void forward_samples(const HsicParams& p) {
  parallel(p.batch * p.partials(), p.tile * p.tile * (p.side[0].depth + p.side[1].depth), [&](int64_t i) {
    for (int k = 0; k < 2; ++k) gram_tile(p, k, i);
    gram_product(p, i);
  });
}
void forward_features(const HsicParams& p) {
  parallel(p.batch * p.partials(), 16 * p.samples * p.side[1].depth,
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_features_rows, p, i); });
}
void forward_gaussian(const HsicParams& p, const bool (&find_sigma)[2]) {
  for (int k = 0; k < 2; ++k) {
    if (find_sigma[k]) find_sigmas(p, k);
    for (int64_t b = 0; b < p.batch && !find_sigma[k]; ++b)
      p.is_double ? find_shift<double>(p, p.side[k], b) : find_shift<float>(p, p.side[k], b);
  }
  const int64_t features = p.side[0].depth + p.side[1].depth;
  parallel(p.batch * p.partials(), p.samples * p.samples / p.groups() * (features + 32) / 2,
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_gaussian_group, p, i); });
  for (int k = 0; k < 2; ++k)
    parallel(p.batch, p.samples * p.groups(), [&](int64_t b) { BDAM_FOR_ISA(p.is_double, hsic_add_sums, p, k, b); });
}

void backward_samples(const HsicParams& p, int which) {
  parallel(p.batch * p.tiles(), p.tile * p.samples * p.side[which].depth,
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_samples_gradient, p, which, i); });
}
void backward_features(const HsicParams& p) {
  for (int k = 0; k < 2; ++k)
    parallel(p.batch * p.tiles(), p.tile * p.side[0].depth * p.side[1].depth,
             [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_features_gradient, p, k, i); });
}
void backward_gaussian(const HsicParams& p) {
  parallel(p.batch * p.tiles(), 2 * p.tile * p.samples * (p.side[0].depth + p.side[1].depth),
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, hsic_gaussian_gradient, p, i); });
}

// The item b as a problem of its own, whose centred sides stand in `centred`.
HsicParams item_of(HsicParams p, int64_t b, Scratch& centred) {
  const int64_t size = p.is_double ? 8 : 4;
  auto move = [&](void*& data, int64_t stride) {
    if (data) data = static_cast<char*>(data) + b * stride * size;
  };
  for (HsicSide& s : p.side) {
    s.input = s.input.at(b, 0, 0);
    if (s.gradient) s.gradient = s.gradient.at(b, 0, 0);
    s.centred = centred.take<char>(p.samples * s.row * size);
    move(s.norms, p.samples);
    for (void** saved : {&s.width, &s.sums, &s.gram}) move(*saved, p.saved_stride);
    move(s.partial_sums, p.groups() * p.samples);
  }
  move(p.product, p.saved_stride);
  if (p.partial) p.partial += b * p.partials();
  if (p.upstream) p.upstream = static_cast<const char*>(p.upstream) + b * size;
  p.batch = 1;
  return p;
}
// Calls f with every item, its number and, where sides need nothing of each other, each of them. What f runs in
// parallel runs in one thread where several of its calls do.
template <class F>
void each_item(const HsicParams& p, const F& f) {
  const int64_t sides = p.sides();
  parallel(p.batch * sides, p.samples * p.samples * (p.side[0].depth + p.side[1].depth) / 2, [&](int64_t task) {
    Scratch centred(kHsicItem, 2, true);
    f(item_of(p, task / sides, centred), task / sides, static_cast<int>(task % sides));
  });
}

void forward_items(const HsicParams& p, const bool (&find_sigma)[2]) {
  each_item(p, [&](const HsicParams& item, int64_t, int which) {
    centre(item, which);
    if (p.form == HsicForm::samples) {
      for (int64_t i = 0; i < item.partials(); ++i) gram_tile(item, which, i);
      return;
    }
    centre(item, 1);
    p.form == HsicForm::features ? forward_features(item) : forward_gaussian(item, find_sigma);
  });
  if (p.form == HsicForm::samples)
    parallel(p.batch * p.partials(), p.tile * p.tile, [&](int64_t i) { gram_product(p, i); });
}
void backward_items(const HsicParams& p) {
  each_item(p, [&](const HsicParams& item, int64_t, int which) {
    centre(item, which);
    if (p.form == HsicForm::samples) return backward_samples(item, which);
    centre(item, 1);
    p.form == HsicForm::features ? backward_features(item) : backward_gaussian(item);
  });
}
}  // namespace

void hsic_forward_cpu(const HsicParams& p, const bool (&find_sigma)[2], double* value) {
  if (p.by_item) {
    forward_items(p, find_sigma);
  } else {
    for (int k = 0; k < 2; ++k) centre(p, k);
    if (p.form == HsicForm::samples)
      forward_samples(p);
    else
      p.form == HsicForm::features ? forward_features(p) : forward_gaussian(p, find_sigma);
  }
  for (int64_t b = 0; b < p.batch; ++b) value[b] = p.is_double ? combine<double>(p, b) : combine<float>(p, b);
}

void hsic_backward_cpu(const HsicParams& p) {
  if (p.by_item) return backward_items(p);
  for (int k = 0; k < 2; ++k) centre(p, k);
  if (p.form == HsicForm::samples)
    for (int k = 0; k < 2; ++k) backward_samples(p, k);
  else
    p.form == HsicForm::features ? backward_features(p) : backward_gaussian(p);
}

}  // namespace bdam_fast
