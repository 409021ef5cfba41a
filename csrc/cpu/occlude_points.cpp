// occlude_points_ on the CPU: clouds are shared out to threads; nothing is written before all relevance is checked.
#include "occlude_points_args.h"

#include <atomic>

#include "checks.h"
#include "ops.h"

namespace attrdrop {

// Gives which points were dropped (N, P).
Tensor occlude_points_cpu(Tensor points, PointProblem p) {
  Tensor dropped = torch::stable::new_empty(points, {points.size(0), points.size(1)}, ScalarType::Bool);
  p.dropped = static_cast<bool*>(dropped.mutable_data_ptr());
  const int64_t clouds = grain(16 * int64_t{p.size});  // a point costs as much as 16 elements that are copied
  std::atomic<bool> all_finite{true};
  torch::stable::parallel_for(0, p.count, clouds, [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(kernels().points_scratch(p));
    for (int64_t n = begin; n < end; ++n)
      if (!kernels().choose_points(p, n, scratch.get())) all_finite = false;
  });
  check_data(all_finite, "relevance must be finite");
  torch::stable::parallel_for(0, p.count, clouds, [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(2 * static_cast<int64_t>(sizeof(uint32_t)) * p.size);
    for (int64_t n = begin; n < end; ++n) kernels().replace_points(p, n, static_cast<uint32_t*>(scratch.get()));
  });
  return dropped;
}

}  // namespace attrdrop
