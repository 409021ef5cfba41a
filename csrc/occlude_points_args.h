// Tensors of occlude_points_ as the kernels want them, for the CPU and the CUDA side.
#pragma once
#include "occlusion_args.h"
#include "points_args.h"
#include "occlude_points.h"

namespace attrdrop {

// points (N, P, C), relevance (N, P, c), valid (N, P); all but where the mask goes.
inline PointProblem point_problem(const Tensor& points, const std::optional<Tensor>& relevance,
                                  const std::optional<Tensor>& valid, double alpha, double beta, bool calibrated,
                                  int64_t norm, int64_t replacement, double value, const std::optional<Tensor>& values,
                                  int64_t seed, const std::optional<Tensor>& sample_ids) {
  PointProblem p{};
  p.points = point_view(points, "points");
  STD_TORCH_CHECK(points.size(1) < int64_t{1} << 30, "points must have fewer than 2^30 points in a cloud");
  STD_TORCH_CHECK(norm >= 0 && norm <= 2 && replacement >= 0 && replacement <= 2, "norm and replacement must be 0, 1 or 2");
  if (relevance) {
    p.relevance = point_view(*relevance, "relevance");
    p.relevance_channels = static_cast<int32_t>(relevance->size(2));
    STD_TORCH_CHECK(relevance->size(0) == points.size(0) && relevance->size(1) == points.size(1) && p.relevance_channels > 0,
                    "relevance must have shape (N, P, c), c at least 1");
  }
  p.valid = valid_view(valid, points);
  p.rule = {alpha, beta, calibrated, static_cast<Norm>(norm), static_cast<uint64_t>(seed)};
  p.replacement = static_cast<Replacement>(replacement);
  p.constant = constant_of(value, values, points, points.size(2), "points");
  p.sample_ids = sample_ids_of(sample_ids, points.size(0));
  p.count = points.size(0);
  p.size = static_cast<uint32_t>(points.size(1)), p.channels = static_cast<int32_t>(points.size(2));
  return p;
}

inline Tensor new_dropped(const Tensor& points, PointProblem& p) {
  Tensor dropped = torch::stable::new_empty(points, {points.size(0), points.size(1)}, ScalarType::Bool);
  p.dropped = static_cast<bool*>(dropped.mutable_data_ptr());
  return dropped;
}

}  // namespace attrdrop
