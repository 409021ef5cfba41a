// group_points and scatter_points on CUDA tensors.
#include "cuda/group_points.cuh"

#include "checks.h"
#include "cuda/stream.h"
#include "points_args.h"

namespace attrdrop {

// points (N, P, C), index (N, S, k), centres (N, S, 3) -> (N, S, k, C)
Tensor group_points_cuda(Tensor points, Tensor index, std::optional<Tensor> centres) {
  GroupProblem p = group_problem(view_of(points), view_of(index), view_of(centres));
  const DeviceScope scope(points);
  Tensor grouped = torch::stable::new_empty(points, {points.size(0), index.size(1), index.size(2), points.size(2)});
  p.out = grouped.mutable_data_ptr();
  launch_group_points(p, scope.stream);
  return grouped;
}

// grad (N, S, k, C), index (N, S, k) -> (N, size, C); order and starts are the inverse of the index, see points.h.
Tensor scatter_points_cuda(Tensor grad, Tensor index, int64_t size, std::optional<Tensor> order,
                           std::optional<Tensor> starts) {
  require(order && starts, "order and starts must be the inverse of index");
  ScatterProblem p = scatter_problem(view_of(grad), view_of(index), size, view_of(order), view_of(starts));
  const DeviceScope scope(grad);
  Tensor sums = torch::stable::new_empty(grad, {grad.size(0), size, grad.size(3)});
  p.out = sums.mutable_data_ptr();
  launch_scatter_points(p, scope.stream);
  return sums;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("group_points", TORCH_BOX(&attrdrop::group_points_cuda));
  m.impl("scatter_points", TORCH_BOX(&attrdrop::scatter_points_cuda));
}
