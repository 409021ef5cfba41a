// farthest_point_sample on the CPU: a thread for each cloud, whose points stay in its nearest cache.
#include "cpu/points.h"
#include "ops.h"

namespace attrdrop {

// Where a cloud begins: at its start, or where that is padding or not given, at the first valid point.
static int64_t first_point(const Clouds& clouds, const StartView& start, int64_t n) {
  const int64_t given = start.data ? start.data[n * start.cloud] : -1;
  const bool is_valid = given >= 0 && clouds[n].x[given] == clouds[n].x[given];
  return is_valid ? given : clouds.first_valid(n);
}

// points (N, P, C), valid (N, P), start (N) -> int64 (N, n)
Tensor farthest_point_sample_cpu(Tensor points, int64_t n, std::optional<Tensor> valid, std::optional<Tensor> start) {
  const Clouds clouds(points, valid);
  const StartView begins = start_view(view_of(start), clouds.count);
  for (int64_t i = 0; begins.data && i < clouds.count; ++i) {
    const int64_t given = begins.data[i * begins.cloud];
    STD_TORCH_CHECK(given >= 0 && given < points.size(1), "start must lie in [0, ", points.size(1), "), got ", given);
  }
  Tensor chosen = torch::stable::new_empty(points, {clouds.count, n}, ScalarType::Long);
  auto* out = chosen.mutable_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, n * clouds.size));
  torch::stable::parallel_for(0, clouds.count, grain, [&](int64_t begin, int64_t end) {
    const AlignedBuffer nearest(static_cast<int64_t>(sizeof(float)) * clouds.size);
    for (int64_t i = begin; i < end; ++i)
      kernels().farthest_points(
          {clouds[i], first_point(clouds, begins, i), n, static_cast<float*>(nearest.get()), out + i * n});
  });
  return chosen;
}

}  // namespace attrdrop
