// Points of a batch as the CPU kernels read them, made once for all that work on it: one pass where they make many, so not
// in cpu/isa.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "checks.h"
#include "points_args.h"

namespace attrdrop {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Calls run with a number of the element type.
template <class Run>
static void with_element(Dtype type, Run run) {
  switch (type) {
    case Dtype::bf16: return run(BFloat16{});
    case Dtype::f16: return run(Half{});
    default: return run(float{});
  }
}

template <class T>
static Point read_point(const PointView& view, int64_t cloud, int64_t index) {
  const T* at = static_cast<const T*>(view.data) + cloud * view.cloud + index * view.point;
  return {static_cast<float>(at[0]), static_cast<float>(at[view.channel]), static_cast<float>(at[2 * view.channel])};
}

class Clouds {
 public:
  Clouds(const Tensor& points, const std::optional<Tensor>& valid)
      : count((check_cloud(view_of(points), 3), points.size(0))),
        size((points.size(1) + CLOUD_BLOCK - 1) / CLOUD_BLOCK * CLOUD_BLOCK),
        room_(static_cast<int64_t>(sizeof(float)) * 3 * count * size) {
    const PointView view = point_view(view_of(points), "points");
    const ValidView mask = valid_view(view_of(valid), view_of(points));
    std::atomic<bool> all_finite{true};
    with_element(view.type, [&](auto element) {
      torch::stable::parallel_for(0, count, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, size)),
                                  [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
          if (!read<decltype(element)>(view, mask, n, points.size(1))) all_finite = false;
      });
    });
    check_data(all_finite, "points must have finite coordinates");
  }

  Cloud operator[](int64_t n) const {
    const float* x = static_cast<float*>(room_.get()) + 3 * n * size;
    return {x, x + size, x + 2 * size, size};
  }

  // Index of the first valid point, 0 where there is none.
  int64_t first_valid(int64_t n) const {
    const float* x = (*this)[n].x;
    const float* found = std::find_if(x, x + size, [](float value) { return value == value; });
    return found == x + size ? 0 : found - x;
  }

  const int64_t count, size;

 private:
  // Whether all valid points of a cloud are finite.
  template <class T>
  bool read(const PointView& view, const ValidView& mask, int64_t n, int64_t points) {
    float* x = static_cast<float*>(room_.get()) + 3 * n * size;
    float *y = x + size, *z = y + size;
    bool all_finite = true;
    for (int64_t i = 0; i < points; ++i) {
      const Point point = read_point<T>(view, n, i);
      const bool counts = is_valid(mask, n, i);
      all_finite &= !counts | is_finite(point);
      x[i] = counts ? point.x : NAN, y[i] = point.y, z[i] = point.z;
    }
    for (float* values : {x, y, z}) std::fill(values + points, values + size, NAN);
    return all_finite;
  }

  AlignedBuffer room_;  // (count, 3, size)
};

}  // namespace attrdrop
