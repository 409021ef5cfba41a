// group_points and scatter_points on the CPU: rows are copied by all threads, and added up by one for each cloud.
#include <algorithm>
#include <atomic>

#include "checks.h"
#include "ops.h"
#include "points_args.h"

namespace attrdrop {

static void check_inside(const int64_t* outside, int64_t size) {
  check_data(!outside, "index must lie in [0, ", size, "), got ", outside ? *outside : 0);
}

// points (N, P, C), index (N, S, k), centres (N, S, 3) -> (N, S, k, C)
Tensor group_points_cpu(Tensor points, Tensor index, std::optional<Tensor> centres) {
  GroupProblem p = group_problem(view_of(points), view_of(index), view_of(centres));
  Tensor grouped = torch::stable::new_empty(points, {points.size(0), p.centres_each, p.k, points.size(2)});
  p.out = grouped.mutable_data_ptr();
  std::atomic<const int64_t*> outside{nullptr};
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, p.k * p.channels));
  torch::stable::parallel_for(0, p.clouds * p.centres_each, grain, [&](int64_t begin, int64_t end) {
    if (const int64_t* index = kernels().gather_rows(p, begin, end)) outside = index;
  });
  check_inside(outside, p.size);
  return grouped;
}

// grad (N, S, k, C), index (N, S, k) -> (N, size, C): the rows that belong to each point, added up. CUDA alone needs the
// order of the index.
Tensor scatter_points_cpu(Tensor grad, Tensor index, int64_t size, std::optional<Tensor>, std::optional<Tensor>) {
  ScatterProblem p = scatter_problem(view_of(grad), view_of(index), size, {}, {});
  Tensor sums = torch::stable::new_empty(grad, {grad.size(0), size, grad.size(3)});
  p.out = sums.mutable_data_ptr();
  // clouds alone, or ranges of their channels too where threads would be idle
  constexpr int64_t least_width = 16;
  const int64_t threads = torch::stable::get_num_threads(), channels = p.channels;
  const int64_t wanted = p.clouds > 0 ? (threads + p.clouds - 1) / p.clouds : 1;
  const int64_t width = std::max(least_width, (channels + wanted - 1) / wanted);
  const int64_t parts = (channels + width - 1) / width;
  std::atomic<const int64_t*> outside{nullptr};
  torch::stable::parallel_for(0, p.clouds * parts, 1, [&](int64_t begin, int64_t end) {
    const AlignedBuffer room(static_cast<int64_t>(sizeof(float)) * size * std::min(width, channels));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % parts * width;
      if (const int64_t* index = kernels().add_rows(p, task / parts, first, std::min(width, channels - first),
                                                    static_cast<float*>(room.get())))
        outside = index;
    }
  });
  check_inside(outside, size);
  return sums;
}

}  // namespace attrdrop
