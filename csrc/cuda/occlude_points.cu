// occlude_points_ on CUDA tensors.
#include "cuda/occlude_points.cuh"

#include "checks.h"
#include "cuda/stream.h"
#include "occlude_points_args.h"

namespace attrdrop {

// Gives which points were dropped (N, P).
Tensor occlude_points_cuda(Tensor points, PointProblem p) {
  const DeviceScope scope(points);
  Tensor dropped = torch::stable::new_empty(points, {points.size(0), points.size(1)}, ScalarType::Bool);
  p.dropped = static_cast<bool*>(dropped.mutable_data_ptr());
  std::optional<Tensor> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch = torch::stable::new_empty(points, {bytes}, ScalarType::Byte);
    return scratch->mutable_data_ptr();
  };
  launch_occlude_points(p, new_scratch, scope.stream);
  return dropped;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("occlude_points_", TORCH_BOX((&attrdrop::occlude_points_op<attrdrop::Tensor, attrdrop::occlude_points_cuda>)));
}
