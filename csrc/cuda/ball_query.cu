// ball_query on CUDA tensors.
#include "cuda/ball_query.cuh"

#include <algorithm>
#include <numeric>

#include "cuda/stream.h"
#include "points_args.h"

namespace attrdrop {

// points (N, P, C), centres (N, S, C), valid (N, P) -> int64 (N, S, sum of k), one scale after the other
Tensor ball_query_cuda(Tensor points, Tensor centres, std::vector<double> radius, std::vector<int64_t> k,
                       std::optional<Tensor> valid) {
  check_cloud(points, 3);
  check_centres(centres, points);
  check_scales(radius, k);
  const DeviceScope scope(points);
  const int64_t columns = std::accumulate(k.begin(), k.end(), int64_t{0});
  Tensor index = torch::stable::new_empty(points, {points.size(0), centres.size(1), columns}, ScalarType::Long);
  QueryArgs args{};
  args.points = point_view(points, "points"), args.centres = point_view(centres, "centres");
  args.valid = valid_view(valid, points);
  args.clouds = points.size(0), args.centres_each = centres.size(1), args.size = static_cast<int32_t>(points.size(1));
  args.scales = static_cast<int32_t>(k.size()), args.columns = static_cast<int32_t>(columns);
  const std::vector<float> radius2 = squared_radii(radius);
  std::copy(radius2.begin(), radius2.end(), args.radius2);
  std::copy(k.begin(), k.end(), args.k);
  args.out = index.mutable_data_ptr<int64_t>();
  launch_ball_query(args, scope.stream);
  return index;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) { m.impl("ball_query", TORCH_BOX(&attrdrop::ball_query_cuda)); }
