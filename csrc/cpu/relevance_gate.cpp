// relevance_gate and its backward on the CPU: any dense layout, elements in the order of memory.
#include <limits>

#include "checks.h"
#include "ops.h"

namespace attrdrop {

constexpr int64_t GRAIN = 16384;  // elements
constexpr int64_t SHORT_RUN = 16;  // where fewer elements of a channel lie together, scale and shift are spread out
constexpr int64_t LEAST_ENTRIES = 512;

static Dtype gate_dtype(const Tensor& t, const char* name) {
  return t.scalar_type() == ScalarType::Double ? Dtype::f64 : kernel_dtype(t, name);
}

// x in the memory order of `like`, whose shape and type it has.
static Tensor in_layout_of(const Tensor& x, const Tensor& like) {
  bool is_same = true;
  for (int64_t i = 0; i < like.dim(); ++i) is_same &= like.size(i) <= 1 || x.stride(i) == like.stride(i);
  if (is_same) return x;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, x);
  return copy;
}

static void check_like(const Tensor& t, const Tensor& like, const char* name, const char* like_name) {
  bool is_alike = t.dim() == like.dim() && t.scalar_type() == like.scalar_type();
  for (int64_t i = 0; is_alike && i < like.dim(); ++i) is_alike = t.size(i) == like.size(i);
  STD_TORCH_CHECK(is_alike, name, " must have the shape and dtype of ", like_name);
}

// Scale and shift spread over the memory order of a dense tensor: its channels have stride `inner`, whatever the order
// of the other dimensions. One that is absent is 1 or -0, which change nothing.
template <class Real>
struct Spread {
  Spread(const Tensor& dense, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift) {
    const bool is_affine = scale || shift;
    STD_TORCH_CHECK(!is_affine || dense.dim() > 1, "scale and shift need a dimension of channels");
    const int64_t size = is_affine ? dense.size(1) : 1;
    const int64_t inner = size > 1 ? dense.stride(1) : dense.numel();
    const int64_t each = inner < SHORT_RUN ? inner : 1, period = size * each;
    const int64_t repeats = inner < SHORT_RUN && period < LEAST_ENTRIES ? LEAST_ENTRIES / period : 1;
    channels = {nullptr, nullptr, repeats * period, inner < SHORT_RUN ? 1 : inner};
    values = std::make_unique<Real[]>(2 * channels.count);
    fill(scale, "scale", Real{1}, size, each, repeats, values.get());
    fill(shift, "shift", -Real{0}, size, each, repeats, values.get() + channels.count);
    channels.scale = values.get();
    channels.shift = values.get() + channels.count;
  }

  static void fill(const std::optional<Tensor>& given, const char* name, Real otherwise, int64_t size, int64_t each,
                   int64_t repeats, Real* out) {
    constexpr auto wanted = sizeof(Real) == 8 ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(!given || (given->dim() == 1 && given->size(0) == size && given->scalar_type() == wanted), name,
                    " must have shape (", size, ",) and dtype ", sizeof(Real) == 8 ? "float64" : "float32");
    const Real* data = given ? static_cast<const Real*>(given->const_data_ptr()) : &otherwise;
    const int64_t stride = given ? given->stride(0) : 0;
    for (int64_t r = 0; r < repeats; ++r)
      for (int64_t c = 0; c < size; ++c)
        for (int64_t i = 0; i < each; ++i) *out++ = data[c * stride];
  }

  std::unique_ptr<Real[]> values;
  Channels channels;
};

// Calls run with the channels of float32 or, for double, of float64.
template <class Run>
static void with_channels(const Tensor& dense, Dtype dtype, const std::optional<Tensor>& scale,
                          const std::optional<Tensor>& shift, Run run) {
  if (dtype == Dtype::f64)
    run(Spread<double>(dense, scale, shift).channels);
  else
    run(Spread<float>(dense, scale, shift).channels);
}

Tensor relevance_gate_cpu(Tensor z, std::optional<Tensor> scale, std::optional<Tensor> shift, bool relu) {
  Tensor y = torch::stable::empty_like(z);  // dense: it keeps dense strides, and orders others likewise
  const Dtype dtype = gate_dtype(z, "z");
  if (z.numel() == 0) return y;
  const Tensor dense = in_layout_of(z, y);
  with_channels(y, dtype, scale, shift, [&](const Channels& channels) {
    const double least = relu ? 0.0 : -std::numeric_limits<double>::infinity();
    const GateProblem problem{dense.const_data_ptr(), y.mutable_data_ptr(), dtype, channels, least};
    torch::stable::parallel_for(0, z.numel(), GRAIN,
                                [&](int64_t begin, int64_t end) { kernels().gate(problem, begin, end); });
  });
  return y;
}

Tensor relevance_gate_backward_cpu(Tensor grad, Tensor y, std::optional<Tensor> surrogate, std::optional<Tensor> scale,
                                   double eps) {
  check_like(grad, y, "grad", "y");
  if (surrogate) check_like(*surrogate, y, "surrogate", "y");
  const Dtype dtype = gate_dtype(y, "y");
  Tensor out = torch::stable::empty_like(y);
  if (y.numel() == 0) return out;
  const Tensor dense = in_layout_of(y, out), dense_grad = in_layout_of(grad, out);
  const Tensor divisor = surrogate ? in_layout_of(*surrogate, out) : dense;
  with_channels(out, dtype, scale, std::nullopt, [&](const Channels& channels) {
    const GateBackwardProblem problem{dense_grad.const_data_ptr(), dense.const_data_ptr(), divisor.const_data_ptr(),
                                      out.mutable_data_ptr(), dtype, channels, eps};
    torch::stable::parallel_for(0, y.numel(), GRAIN,
                                [&](int64_t begin, int64_t end) { kernels().gate_backward(problem, begin, end); });
  });
  return out;
}

}  // namespace attrdrop
