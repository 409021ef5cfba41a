// ball_query on the CPU: centres are shared out to threads.
#include <numeric>

#include "cpu/points.h"
#include "ops.h"

namespace attrdrop {

// points (N, P, C), centres (N, S, C), valid (N, P) -> int64 (N, S, sum of k), one scale after the other
Tensor ball_query_cpu(Tensor points, Tensor centres, std::vector<double> radius, std::vector<int64_t> k,
                      std::optional<Tensor> valid) {
  const Clouds clouds(points, valid);
  check_centres(view_of(centres), view_of(points));
  check_scales(radius, k);
  const PointView view = point_view(view_of(centres), "centres");
  const int64_t scales = static_cast<int64_t>(k.size()), each = centres.size(1);
  const int64_t columns = std::accumulate(k.begin(), k.end(), int64_t{0});
  const std::vector<float> radius2 = squared_radii(radius);
  Tensor index = torch::stable::new_empty(points, {clouds.count, each, columns}, ScalarType::Long);
  auto* out = index.mutable_data_ptr<int64_t>();
  std::atomic<bool> all_finite{true};
  with_element(view.type, [&](auto element) {
    const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, clouds.size));
    torch::stable::parallel_for(0, clouds.count * each, grain, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> found(scales);
      for (int64_t i = begin; i < end; ++i) {
        const Point centre = read_point<decltype(element)>(view, i / each, i % each);
        if (!is_finite(centre)) all_finite = false;
        kernels().ball_query({clouds[i / each], centre.x, centre.y, centre.z, radius2.data(), k.data(), scales,
                              found.data(), out + i * columns});
      }
    });
  });
  check_data(all_finite, "centres must have finite coordinates");
  return index;
}

}  // namespace attrdrop
