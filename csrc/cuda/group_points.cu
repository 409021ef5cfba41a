// group_points and scatter_points on CUDA tensors.
#include "cuda/group_points.cuh"

#include "cuda/stream.h"
#include "points_args.h"

namespace attrdrop {

// points (N, P, C), index (N, S, k), centres (N, S, 3) -> (N, S, k, C)
Tensor group_points_cuda(Tensor points, Tensor index, std::optional<Tensor> centres) {
  check_group(points, index, centres);
  const DeviceScope scope(points);
  Tensor grouped = torch::stable::new_empty(points, {points.size(0), index.size(1), index.size(2), points.size(2)});
  GroupArgs args{};
  args.points = point_view(points, "points"), args.index = index_view(index, points.size(0));
  if (centres) args.centres = point_view(*centres, "centres");
  args.clouds = static_cast<int32_t>(points.size(0)), args.size = static_cast<int32_t>(points.size(1));
  args.channels = static_cast<int32_t>(points.size(2));
  args.centres_each = index.size(1), args.k = index.size(2);
  args.out = grouped.mutable_data_ptr();
  launch_group_points(args, scope.stream);
  return grouped;
}

// grad (N, S, k, C), index (N, S, k) -> (N, size, C); order and starts are the inverse of the index, see group_points.cuh.
Tensor scatter_points_cuda(Tensor grad, Tensor index, int64_t size, std::optional<Tensor> order,
                           std::optional<Tensor> starts) {
  const RowView rows = row_view(grad, index);
  const int64_t clouds = grad.size(0);
  STD_TORCH_CHECK(order && starts && order->is_contiguous() && starts->is_contiguous() && order->numel() == index.numel() &&
                      starts->numel() == clouds * size + 1,
                  "order and starts must be the inverse of index, contiguous");
  const DeviceScope scope(grad);
  Tensor sums = torch::stable::new_empty(grad, {clouds, size, grad.size(3)});
  launch_scatter_points({rows, order->const_data_ptr<int64_t>(), starts->const_data_ptr<int64_t>(),
                         kernel_dtype(grad, "grad"), static_cast<int32_t>(clouds), static_cast<int32_t>(size),
                         static_cast<int32_t>(grad.size(3)), grad.size(1), grad.size(2), sums.mutable_data_ptr()},
                        scope.stream);
  return sums;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("group_points", TORCH_BOX(&attrdrop::group_points_cuda));
  m.impl("scatter_points", TORCH_BOX(&attrdrop::scatter_points_cuda));
}
