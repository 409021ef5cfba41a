// farthest_point_sample on CUDA tensors.
#include "cuda/farthest_point_sample.cuh"

#include "checks.h"
#include "cuda/stream.h"

namespace attrdrop {

// points (N, P, C), valid (N, P), start (N) -> int64 (N, n)
Tensor farthest_point_sample_cuda(Tensor points, int64_t n, std::optional<Tensor> valid, std::optional<Tensor> start) {
  SampleArgs args = sample_args(view_of(points), n, view_of(valid), view_of(start));
  const DeviceScope scope(points);
  Tensor chosen = torch::stable::new_empty(points, {points.size(0), n}, ScalarType::Long);
  Tensor nearest = torch::stable::new_empty(
      points, {args.size > FARTHEST_MOST_HELD ? points.size(0) : 0, points.size(1)}, ScalarType::Float);
  args.nearest = static_cast<float*>(nearest.mutable_data_ptr());
  args.out = chosen.mutable_data_ptr<int64_t>();
  launch_farthest_point_sample(args, scope.stream);
  return chosen;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&attrdrop::farthest_point_sample_cuda));
}
