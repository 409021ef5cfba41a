// group_points of some centres, and scatter_points of some channels of one cloud.
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"
#include "points.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int64_t SHORT_ROW = 16;  // elements: shorter rows are faster copied in a loop

static bool is_inside(int64_t index, int64_t size) { return static_cast<uint64_t>(index) < static_cast<uint64_t>(size); }

// FIXED: the number of channels where they are coordinates alone, else 0.
template <int64_t FIXED, class T>
static const int64_t* gather(const GroupProblem& p, int64_t begin, int64_t end) {
  const int64_t channels = FIXED ? FIXED : p.channels;
  const PointView &view = p.points, &centres = p.centres;
  const int64_t* outside = nullptr;
  T* out = static_cast<T*>(p.out) + begin * p.k * channels;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.centres_each, s = i % p.centres_each;
    const T* points = static_cast<const T*>(view.data) + n * view.cloud;
    const int64_t* index = p.index.data + n * p.index.cloud + s * p.index.centre;
    float from[3] = {};
    if (centres.data)
      for (int c = 0; c < 3; ++c)
        from[c] = as_float(static_cast<const T*>(centres.data)[n * centres.cloud + s * centres.point + c * centres.channel]);
    for (int64_t j = 0; j < p.k; ++j, out += channels) {
      const int64_t& at = index[j * p.index.place];
      if (!is_inside(at, p.size)) {
        outside = &at;
        continue;
      }
      const T* row = points + at * view.point;
      int64_t c = 0;
      for (; c < (FIXED || centres.data ? 3 : 0); ++c) put(out + c, as_float(row[c * view.channel]) - from[c]);
      if (view.channel == 1 && channels > SHORT_ROW) memcpy(out + c, row + c, sizeof(T) * (channels - c));
      else for (; c < channels; ++c) out[c] = row[c * view.channel];
    }
  }
  return outside;
}

template <class T>
static const int64_t* gather(const GroupProblem& p, int64_t begin, int64_t end) {
  return p.channels == 3 ? gather<3, T>(p, begin, end) : gather<0, T>(p, begin, end);
}

const int64_t* gather_rows(const GroupProblem& p, int64_t begin, int64_t end) {
  if (p.points.type == Dtype::f32) return gather<float>(p, begin, end);
  if (p.points.type == Dtype::bf16) return gather<BFloat16>(p, begin, end);
  return gather<Float16>(p, begin, end);
}

// The rows of a cloud are added to sums (P, width), channels [first, first + width), in the order of the index.
template <int64_t FIXED, class T>
static const int64_t* add(const ScatterProblem& p, int64_t n, int64_t first, int64_t width, float* sums) {
  const int64_t count = FIXED ? FIXED : width;
  const int64_t* outside = nullptr;
  for (int64_t i = 0; i < p.size * count; ++i) sums[i] = 0;
  for (int64_t s = 0; s < p.centres_each; ++s)
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t& at = p.index.data[n * p.index.cloud + s * p.index.centre + j * p.index.place];
      if (!is_inside(at, p.size)) {
        outside = &at;
        continue;
      }
      const T* row = static_cast<const T*>(p.grad.data) + n * p.grad.cloud + s * p.grad.centre + j * p.grad.place +
                     first * p.grad.channel;
      float* sum = sums + at * count;
      if (p.grad.channel == 1)
        for (int64_t c = 0; c < count; ++c) sum[c] += as_float(row[c]);
      else
        for (int64_t c = 0; c < count; ++c) sum[c] += as_float(row[c * p.grad.channel]);
    }
  T* target = static_cast<T*>(p.out) + n * p.size * p.channels + first;
  for (int64_t i = 0; i < p.size; ++i)
    for (int64_t c = 0; c < count; ++c) put(target + i * p.channels + c, sums[i * count + c]);
  return outside;
}

template <class T>
static const int64_t* add(const ScatterProblem& p, int64_t n, int64_t first, int64_t width, float* sums) {
  return p.channels == 3 ? add<3, T>(p, n, first, width, sums) : add<0, T>(p, n, first, width, sums);
}

const int64_t* add_rows(const ScatterProblem& p, int64_t cloud, int64_t first, int64_t width, float* sums) {
  if (p.type == Dtype::f32) return add<float>(p, cloud, first, width, sums);
  if (p.type == Dtype::bf16) return add<BFloat16>(p, cloud, first, width, sums);
  return add<Float16>(p, cloud, first, width, sums);
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
