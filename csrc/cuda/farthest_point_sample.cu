// farthest_point_sample on CUDA tensors.
#include "cuda/farthest_point_sample.cuh"

#include "cuda/stream.h"
#include "points_args.h"

namespace attrdrop {

// points (N, P, C), valid (N, P), start (N) -> int64 (N, n)
Tensor farthest_point_sample_cuda(Tensor points, int64_t n, std::optional<Tensor> valid, std::optional<Tensor> start) {
  check_cloud(points, 3);
  const DeviceScope scope(points);
  const int64_t clouds = points.size(0), size = points.size(1);
  Tensor chosen = torch::stable::new_empty(points, {clouds, n}, ScalarType::Long);
  Tensor nearest =
      torch::stable::new_empty(points, {size > FARTHEST_MOST_HELD ? clouds : 0, size}, ScalarType::Float);
  launch_farthest_point_sample({point_view(points, "points"), valid_view(valid, points), start_view(start, clouds),
                                static_cast<int32_t>(clouds), static_cast<int32_t>(size), n,
                                static_cast<float*>(nearest.mutable_data_ptr()), chosen.mutable_data_ptr<int64_t>()},
                               scope.stream);
  return chosen;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&attrdrop::farthest_point_sample_cuda));
}
