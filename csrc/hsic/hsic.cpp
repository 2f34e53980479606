// hsic_forward and hsic_backward: schema, checks, allocation and the CPU kernels' registration.
#include "hsic/hsic.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/runtime.h"

namespace bdam_fast {

namespace {
constexpr const char* kOp = "hsic";
CallCounter forward_calls("hsic.cpu.forward");
CallCounter backward_calls("hsic.cpu.backward");

int64_t blocks_of(int64_t n) { return (n + kHsicRow - 1) / kHsicRow; }

// Gram matrices while they cost less: N^2 (Dx + Dy) multiplications, forward (half of them, by symmetry) and backward,
// against N Dx Dy and twice that. _saved_size in bdam_fast/ops/hsic/op.py has the same rule.
HsicForm form_of(int64_t N, int64_t Dx, int64_t Dy, bool gaussian) {
  if (gaussian) return HsicForm::gaussian;
  return N * (Dx + Dy) <= 2 * Dx * Dy ? HsicForm::samples : HsicForm::features;
}

int64_t saved_size(const HsicParams& p) {
  if (p.form == HsicForm::samples) return 2 * p.samples * p.samples;
  if (p.form == HsicForm::features) return p.side[0].features * p.side[1].row;
  return 4 + 2 * p.samples;
}

// Whole sides of items are tasks where a fifth of the threads' time at most is idle; 18 on 16 threads leave 44 %.
bool fills_threads(int64_t tasks) {
  const int64_t threads = torch::stable::get_num_threads();
  return (tasks + threads - 1) / threads * threads * 4 <= tasks * 5;
}

HsicParams parameters(const Tensor& x, const Tensor& y, bool gaussian, bool unbiased) {
  HsicParams p;
  const Tensor* inputs[2] = {&x, &y};
  const char* names[2] = {"x", "y"};
  for (int k = 0; k < 2; ++k)
    STD_TORCH_CHECK(inputs[k]->dim() == 3, kOp, ": ", names[k], " must have shape (batch, N, D), got ",
                    shape_text(inputs[k]->sizes()));
  p.batch = x.size(0), p.samples = x.size(1), p.unbiased = unbiased;
  STD_TORCH_CHECK(p.samples >= (unbiased ? 4 : 2), kOp, ": needs at least ", unbiased ? 4 : 2, " samples, got ",
                  p.samples);
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), kOp, ": x and y must have the same dtype");
  p.is_double = x.scalar_type() == ScalarType::Double;
  for (int k = 0; k < 2; ++k) {
    check_shape(kOp, names[k], *inputs[k], {p.batch, p.samples, inputs[k]->size(2)});
    STD_TORCH_CHECK(inputs[k]->size(2) >= 1, kOp, ": ", names[k], " must have at least one feature");
    p.side[k].input = stream_of(kOp, names[k], *inputs[k], 0, 1, 2);
    p.side[k].features = inputs[k]->size(2);
    p.side[k].depth = blocks_of(p.side[k].features) * kHsicRow;
    p.side[k].row = (blocks_of(p.side[k].features) | 1) * kHsicRow;
  }
  p.form = form_of(p.samples, p.side[0].features, p.side[1].features, gaussian);
  p.tile = p.samples <= kHsicSmall ? 16 : 64;
  p.saved_stride = saved_size(p);
  const int64_t item_bytes = p.samples * (p.side[0].row + p.side[1].row) * (p.is_double ? 8 : 4);
  p.by_item = item_bytes <= kHsicItem && fills_threads(p.batch * p.sides());
  const double n = static_cast<double>(p.samples);
  p.scale = unbiased ? 1 / (n * (n - 3)) : 1 / ((n - 1) * (n - 1));
  p.cross = unbiased ? 2 / (n - 2) : 2 / n;
  p.product_scale = unbiased ? 1 / ((n - 1) * (n - 2)) : 1 / (n * n);
  return p;
}

// Working memory of a call: centred inputs, norms, and the forward's parts of sums.
struct Workspace {
  std::vector<Tensor> tensors;
  std::vector<double> partial;

  void* add(const Tensor& like, int64_t count) {
    tensors.push_back(allocate({count}, accumulate_type(like)));
    return tensors.back().data_ptr();
  }
};

// Points the parameters to the parts of one item's saved values.
void place_saved(HsicParams& p, const Tensor& saved) {
  const int64_t size = p.is_double ? 8 : 4, N = p.samples;
  char* data = static_cast<char*>(saved.data_ptr());
  if (p.form == HsicForm::features) p.product = data;
  for (int k = 0; k < 2; ++k) {
    if (p.form == HsicForm::samples) p.side[k].gram = data + k * N * N * size;
    if (p.form != HsicForm::gaussian) continue;
    p.side[k].width = data + 2 * k * size;
    p.side[k].sums = data + (4 + k * N) * size;
  }
}

void allocate_workspace(HsicParams& p, const Tensor& x, bool is_forward, Workspace& w) {
  for (HsicSide& s : p.side) {
    if (!p.by_item) s.centred = w.add(x, p.batch * p.samples * s.row);
    if (p.form == HsicForm::gaussian || p.unbiased) s.norms = w.add(x, p.batch * p.samples);
    if (p.form == HsicForm::gaussian && is_forward) s.partial_sums = w.add(x, p.batch * p.groups() * p.samples);
  }
  if (is_forward) {
    w.partial.resize(p.batch * p.partials());
    p.partial = w.partial.data();
  }
}

template <class T>
void copy_sigma(const HsicParams& p, const Tensor& sigma, void* to) {
  const T* from = static_cast<const T*>(sigma.data_ptr());
  for (int64_t b = 0; b < p.batch; ++b) static_cast<T*>(to)[b * p.saved_stride] = from[b * sigma.stride(0)];
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& y, const OptionalTensor& sigma_x,
                                   const OptionalTensor& sigma_y, bool gaussian, bool unbiased) {
  forward_calls.increment();
  HsicParams p = parameters(x, y, gaussian, unbiased);
  const ScalarType type = accumulate_type(x);
  Tensor value = allocate({p.batch}, type), saved = allocate({p.batch, p.saved_stride}, type);
  if (p.batch == 0) return {value, saved};
  place_saved(p, saved);
  Workspace workspace;
  allocate_workspace(p, x, true, workspace);
  bool find_sigma[2];
  for (int k = 0; k < 2; ++k) {
    const OptionalTensor& sigma = k == 0 ? sigma_x : sigma_y;
    find_sigma[k] = gaussian && !sigma;
    if (!sigma) continue;
    STD_TORCH_CHECK(gaussian, kOp, ": only the Gaussian kernel has a width");
    check_shape(kOp, k == 0 ? "sigma_x" : "sigma_y", *sigma, {p.batch});
    STD_TORCH_CHECK(sigma->scalar_type() == type, kOp, ": sigma must be float32, or float64 for float64 inputs");
    p.is_double ? copy_sigma<double>(p, *sigma, p.side[k].width) : copy_sigma<float>(p, *sigma, p.side[k].width);
  }
  std::vector<double> values(p.batch);
  hsic_forward_cpu(p, find_sigma, values.data());
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.is_double)
      static_cast<double*>(value.data_ptr())[b] = values[b];
    else
      static_cast<float*>(value.data_ptr())[b] = static_cast<float>(values[b]);
  }
  return {value, saved};
}

std::tuple<Tensor, Tensor> backward(const Tensor& dvalue, const Tensor& x, const Tensor& y, const Tensor& saved,
                                    bool gaussian, bool unbiased) {
  backward_calls.increment();
  HsicParams p = parameters(x, y, gaussian, unbiased);
  check_shape(kOp, "dvalue", dvalue, {p.batch});
  check_shape(kOp, "saved", saved, {p.batch, p.saved_stride});
  STD_TORCH_CHECK(saved.scalar_type() == accumulate_type(x) && saved.is_contiguous(), kOp,
                  ": saved must come from the forward of the same call");
  STD_TORCH_CHECK(dvalue.scalar_type() == accumulate_type(x), kOp, ": dvalue must have the dtype of the value");
  Tensor dx = allocate_like(x), dy = allocate_like(y);
  if (p.batch == 0) return {dx, dy};
  const Tensor upstream = torch::stable::contiguous(dvalue);
  p.upstream = upstream.data_ptr();
  p.side[0].gradient = stream_of(kOp, "dx", dx, 0, 1, 2);
  p.side[1].gradient = stream_of(kOp, "dy", dy, 0, 1, 2);
  place_saved(p, saved);
  Workspace workspace;
  allocate_workspace(p, x, false, workspace);
  hsic_backward_cpu(p);
  return {dx, dy};
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(BDAM_OPS, m) {
  m.def(
      "hsic_forward(Tensor x, Tensor y, Tensor? sigma_x, Tensor? sigma_y, bool gaussian, bool unbiased) "
      "-> (Tensor value, Tensor saved)");
  m.def(
      "hsic_backward(Tensor dvalue, Tensor x, Tensor y, Tensor saved, bool gaussian, bool unbiased) "
      "-> (Tensor dx, Tensor dy)");
}

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, CPU, m) {
  m.impl("hsic_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("hsic_backward", TORCH_BOX(&bdam_fast::backward));
}
