// relevance_gate and its backward, element by element: loops without a branch, which the compiler makes vectors of.
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

// The type that an element is computed in, and back, rounded once.
template <class Element>
struct Computed {
  using Type = float;
};
template <>
struct Computed<double> {
  using Type = double;
};
static inline double as_float(double x) { return x; }
static inline void put(double* at, double value) { *at = value; }

// Calls run(offset, count, entry) for the stretches of [begin, end) in which the entry of the channels stays the same
// or, where inner is 1, grows by one from element to element.
template <class Run>
static inline void for_channels(const Channels& channels, int64_t begin, int64_t end, Run run) {
  const int64_t length = channels.inner == 1 ? channels.count : channels.inner;
  int64_t channel = channels.inner == 1 ? 0 : begin / length % channels.count, skip = begin % length;
  while (begin < end) {
    const int64_t count = length - skip < end - begin ? length - skip : end - begin;
    run(begin, count, channels.inner == 1 ? skip : channel);
    begin += count;
    skip = 0;
    channel = channel + 1 == channels.count ? 0 : channel + 1;
  }
}

// STEP 1: scale and shift for each element; 0: one for all.
template <int STEP, class Element, class Real>
static void forward_run(const Element* __restrict__ z, const Real* __restrict__ scale, const Real* __restrict__ shift,
                        Real least, int64_t count, Element* __restrict__ y) {
  for (int64_t i = 0; i < count; ++i) {
    const Real value = as_float(z[i]) * scale[STEP * i] + shift[STEP * i];
    put(y + i, value < least ? least : value);  // NaN stays
  }
}

template <int STEP, class Element, class Real>
static void backward_run(const Element* __restrict__ grad, const Element* __restrict__ y,
                         const Element* __restrict__ surrogate, const Real* __restrict__ scale, Real eps, int64_t count,
                         Element* __restrict__ out) {
  for (int64_t i = 0; i < count; ++i) {
    const Real value = as_float(y[i]), s = as_float(surrogate[i]);
    const Real quotient = value / (s + (s < 0 ? -eps : eps));
    put(out + i, as_float(grad[i]) * (value == 0 ? 0 : quotient) * scale[STEP * i]);
  }
}

template <class Element, int STEP>
constexpr auto forward_loop = forward_run<STEP, Element, typename Computed<Element>::Type>;
template <class Element, int STEP>
constexpr auto backward_loop = backward_run<STEP, Element, typename Computed<Element>::Type>;

#if defined(__AVX2__)
// Halves go through float32 a block at a time: the processor converts whole vectors only.
constexpr int64_t HALVES = 256;
struct alignas(64) WideBlock {
  WideBlock() {}
  WideBlock(const Float16* in, int64_t count) {
    const auto* bits = reinterpret_cast<const uint16_t*>(in);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(values + i, widen_halves(bits + i));
    if (i == count) return;
    uint16_t rest[LANES] = {};
    memcpy(rest, bits + i, sizeof(uint16_t) * (count - i));
    store(values + i, widen_halves(rest));
  }
  void narrow_to(Float16* out, int64_t count) const {
    auto* bits = reinterpret_cast<uint16_t*>(out);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) narrow_halves(load<vfloat>(values + i), bits + i);
    if (i == count) return;
    uint16_t rest[LANES];
    narrow_halves(load<vfloat>(values + i), rest);
    memcpy(bits + i, rest, sizeof(uint16_t) * (count - i));
  }
  float values[HALVES];
};

template <int STEP>
static void forward_halves(const Float16* z, const float* scale, const float* shift, float least, int64_t count,
                           Float16* y) {
  for (int64_t i = 0; i < count; i += HALVES) {
    const int64_t part = count - i < HALVES ? count - i : HALVES;
    const WideBlock wide_z(z + i, part);
    WideBlock wide_y;
    forward_run<STEP>(wide_z.values, scale + STEP * i, shift + STEP * i, least, part, wide_y.values);
    wide_y.narrow_to(y + i, part);
  }
}

template <int STEP>
static void backward_halves(const Float16* grad, const Float16* y, const Float16* surrogate, const float* scale,
                            float eps, int64_t count, Float16* out) {
  for (int64_t i = 0; i < count; i += HALVES) {
    const int64_t part = count - i < HALVES ? count - i : HALVES;
    const WideBlock wide_grad(grad + i, part), wide_y(y + i, part), wide_s(surrogate + i, part);
    WideBlock wide_out;
    backward_run<STEP>(wide_grad.values, wide_y.values, wide_s.values, scale + STEP * i, eps, part, wide_out.values);
    wide_out.narrow_to(out + i, part);
  }
}

template <int STEP>
constexpr auto forward_loop<Float16, STEP> = forward_halves<STEP>;
template <int STEP>
constexpr auto backward_loop<Float16, STEP> = backward_halves<STEP>;
#endif

template <class Element>
static void forward_elements(const GateProblem& p, int64_t begin, int64_t end) {
  using Real = typename Computed<Element>::Type;
  const auto* z = static_cast<const Element*>(p.z);
  auto* y = static_cast<Element*>(p.y);
  const auto *scale = static_cast<const Real*>(p.channels.scale), *shift = static_cast<const Real*>(p.channels.shift);
  const auto run = p.channels.inner == 1 ? forward_loop<Element, 1> : forward_loop<Element, 0>;
  for_channels(p.channels, begin, end, [=, &p](int64_t at, int64_t count, int64_t entry) {
    run(z + at, scale + entry, shift + entry, static_cast<Real>(p.least), count, y + at);
  });
}

template <class Element>
static void backward_elements(const GateBackwardProblem& p, int64_t begin, int64_t end) {
  using Real = typename Computed<Element>::Type;
  const auto *grad = static_cast<const Element*>(p.grad), *y = static_cast<const Element*>(p.y);
  const auto* surrogate = static_cast<const Element*>(p.surrogate);
  const auto* scale = static_cast<const Real*>(p.channels.scale);
  auto* out = static_cast<Element*>(p.out);
  const auto run = p.channels.inner == 1 ? backward_loop<Element, 1> : backward_loop<Element, 0>;
  for_channels(p.channels, begin, end, [=, &p](int64_t at, int64_t count, int64_t entry) {
    run(grad + at, y + at, surrogate + at, scale + entry, static_cast<Real>(p.eps), count, out + at);
  });
}

void gate(const GateProblem& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case Dtype::f32: return forward_elements<float>(p, begin, end);
    case Dtype::bf16: return forward_elements<BFloat16>(p, begin, end);
    case Dtype::f16: return forward_elements<Float16>(p, begin, end);
    case Dtype::f64: return forward_elements<double>(p, begin, end);
  }
}

void gate_backward(const GateBackwardProblem& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case Dtype::f32: return backward_elements<float>(p, begin, end);
    case Dtype::bf16: return backward_elements<BFloat16>(p, begin, end);
    case Dtype::f16: return backward_elements<Float16>(p, begin, end);
    case Dtype::f64: return backward_elements<double>(p, begin, end);
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
