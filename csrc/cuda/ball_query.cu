// ball_query on CUDA tensors.
#include "cuda/ball_query.cuh"

#include "checks.h"
#include "cuda/stream.h"

namespace attrdrop {

// points (N, P, C), centres (N, S, C), valid (N, P) -> int64 (N, S, sum of k), one scale after the other
Tensor ball_query_cuda(Tensor points, Tensor centres, std::vector<double> radius, std::vector<int64_t> k,
                       std::optional<Tensor> valid) {
  QueryArgs args = query_args(view_of(points), view_of(centres), radius, k, view_of(valid));
  const DeviceScope scope(points);
  Tensor index = torch::stable::new_empty(points, {points.size(0), centres.size(1), args.columns}, ScalarType::Long);
  args.out = index.mutable_data_ptr<int64_t>();
  launch_ball_query(args, scope.stream);
  return index;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) { m.impl("ball_query", TORCH_BOX(&attrdrop::ball_query_cuda)); }
