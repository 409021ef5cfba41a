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
static inline void put(float* at, float value) { *at = value; }
static inline void put(double* at, double value) { *at = value; }
static inline void put(BFloat16* at, float value) { at->bits = narrow(value); }
static inline void put(Float16* at, float value) { at->bits = narrow_half(value); }

// Calls run(offset, count, entry) for the stretches of [begin, end) in which the entry of the channels stays the same or,
// where inner is 1, grows by one from element to element.
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

template <class Element>
static void forward_elements(const GateProblem& p, int64_t begin, int64_t end) {
  using Real = typename Computed<Element>::Type;
  const auto* z = static_cast<const Element*>(p.z);
  auto* y = static_cast<Element*>(p.y);
  const auto *scale = static_cast<const Real*>(p.channels.scale), *shift = static_cast<const Real*>(p.channels.shift);
  const auto run = p.channels.inner == 1 ? forward_run<1, Element, Real> : forward_run<0, Element, Real>;
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
  const auto run = p.channels.inner == 1 ? backward_run<1, Element, Real> : backward_run<0, Element, Real>;
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
