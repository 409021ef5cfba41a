// occlude_points_ on CUDA tensors.
#include "cuda/occlude_points.cuh"

#include "cuda/stream.h"
#include "occlude_points_args.h"

namespace attrdrop {

// points (N, P, C); relevance (N, P, c); valid (N, P); gives which were dropped (N, P).
Tensor occlude_points_cuda(Tensor points, std::optional<Tensor> relevance, std::optional<Tensor> valid, double alpha,
                           double beta, bool calibrated, int64_t norm, int64_t replacement, double value,
                           std::optional<Tensor> values, int64_t seed, std::optional<Tensor> sample_ids) {
  const DeviceScope scope(points);
  PointProblem p = point_problem(points, relevance, valid, alpha, beta, calibrated, norm, replacement, value, values, seed,
                                 sample_ids);
  Tensor dropped = new_dropped(points, p);
  std::optional<Tensor> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch = torch::stable::new_empty(points, {bytes}, ScalarType::Byte);
    return scratch->mutable_data_ptr();
  };
  launch_occlude_points(p, new_scratch, scope.stream);
  return dropped;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) { m.impl("occlude_points_", TORCH_BOX(&attrdrop::occlude_points_cuda)); }
