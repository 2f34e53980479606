// Parameters of HSIC on the CPU, without torch. For kernel matrices K of x and L of y, N samples, row sums r, totals s:
//   value = scale (<K, L> - cross r_K . r_L + product s_K s_L)
//   biased    scale = 1 / (N - 1)^2, cross = 2 / N, product = 1 / N^2, which is tr(KHLH) / (N - 1)^2
//   unbiased  scale = 1 / (N (N - 3)), cross = 2 / (N - 2), product = 1 / ((N - 1) (N - 2)), both diagonals zero
// Neither changes when x or y is shifted, or when a constant is added to K (off the diagonal for the unbiased one). So
// x and y are centred first, which makes r = 0 for a linear kernel (minus the diagonal where that is left out), and of
// the Gaussian kernel exp(t_ij) its value c = exp(t) at a typical distance is taken off, as c expm1(t_ij - t): no
// digits are lost to the part that cancels, for narrow widths nor wide ones.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace bdam_fast {

constexpr int64_t kHsicRow = 16;      // centred rows are filled up with zeros to a multiple of this
constexpr int64_t kHsicGroups = 32;   // Gaussian: partial row sums that are kept, so tasks of the forward
constexpr double kHsicLeast = -80;    // exp of it and of its negative are normal numbers
constexpr int64_t kHsicColumns = 64;  // features: samples that are added to M at a time
constexpr int64_t kHsicTile = 64;     // largest tile
constexpr int64_t kHsicCentre = 128;  // features that a task centres
// Items, or with Gram matrices their sides, are a task each where there are enough of them and both sides of one,
// centred, have at most so many bytes: these stay in the cache of one core, and are no fresh memory in every call.
constexpr int64_t kHsicItem = 1 << 20;
// Rows whose squared distance is below this part of their squared lengths' sum are close: an inner product would leave
// less than 2e-6 relative of it.
constexpr double kHsicClose = 1.0 / 32;
constexpr int64_t kHsicSmall = 256;            // up to so many samples tiles have 16 on a side, then 64
constexpr int64_t kHsicDirectPairs = 1 << 17;  // up to so many distances are gathered for their median, else counted

enum class HsicForm {
  samples,   // linear, by the N x N Gram matrices, which are saved for the backward
  features,  // linear, by M = Xc^T Yc (Dx x Dy), which is saved: <K, L> = |M|^2
  gaussian,  // in tiles of N x N that are never kept; widths and row sums are saved
};

struct HsicSide {
  Stream input, gradient;  // (batch, N, D) as (batch, time, channel)
  int64_t features = 0;    // D
  int64_t depth = 0;       // D rounded up to kHsicRow
  int64_t row = 0;         // elements from one centred row to the next: an odd multiple of kHsicRow, so that columns of
                           // many rows do not fall into a few sets of the cache
  void* centred = nullptr;  // [batch][N][row]; null until the task where items are tasks
  void* norms = nullptr;    // [batch][N]: squared lengths of the centred rows; not for the biased linear kernel
  // Within `saved`, items saved_stride apart:
  void* width = nullptr;         // Gaussian: sigma, then t = -m / (2 sigma^2), not below kHsicLeast, where m is the
                                 // median of |x_i - x_j|^2 if that has set sigma, else the mean
  void* sums = nullptr;          // Gaussian: [N], row sums of c expm1(t_ij - t)
  void* gram = nullptr;          // samples: [N][N]
  void* partial_sums = nullptr;  // Gaussian: [batch][groups][N]

  int64_t centre_tasks() const { return (depth + kHsicCentre - 1) / kHsicCentre; }
};

struct HsicParams {
  HsicSide side[2];  // x, y
  HsicForm form = HsicForm::samples;
  bool unbiased = false, is_double = false;
  bool by_item = false;  // an item, or a side of it, is a task, which centres into memory of its thread
  int64_t batch = 0, samples = 0;
  int64_t tile = 16;  // samples on a side of a tile
  int64_t saved_stride = 0;
  void* product = nullptr;         // features, within `saved`: M, [Dx][row of y]
  double* partial = nullptr;       // [batch][partials()]: parts of <K, L>
  const void* upstream = nullptr;  // [batch]: gradient of the value
  double scale = 0, cross = 0, product_scale = 0;

  // Parts of an item that need nothing of each other.
  int sides() const { return form == HsicForm::samples ? 2 : 1; }
  int64_t tiles() const { return (samples + tile - 1) / tile; }
  int64_t groups() const { return tiles() < kHsicGroups ? tiles() : kHsicGroups; }
  int64_t partials() const {
    if (form == HsicForm::samples) return tiles() * (tiles() + 1) / 2;
    if (form == HsicForm::gaussian) return groups();
    return side[0].depth / 16;
  }
};

// Fills everything that `saved` points to; the widths only where `find_sigma` asks for the median heuristic.
void hsic_forward_cpu(const HsicParams& p, const bool (&find_sigma)[2], double* value);
void hsic_backward_cpu(const HsicParams& p);

}  // namespace bdam_fast
