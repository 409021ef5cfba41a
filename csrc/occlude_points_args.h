// Arguments of occlude_points_ as the kernels want them: for the CPU, for CUDA and for the emulator.
#pragma once
#include "occlude_points.h"
#include "occlusion_args.h"
#include "points_args.h"

namespace attrdrop {

// RUN(points, problem, launch...) with the arguments of the operator occlude_points_, all but where the mask goes.
template <class Array, auto RUN, class... Launch>
auto occlude_points_op(Array points, std::optional<Array> relevance, std::optional<Array> valid, double alpha, double beta,
                       bool calibrated, int64_t norm, int64_t replacement, double value, std::optional<Array> values,
                       int64_t seed, std::optional<Array> sample_ids, Launch... launch) {
  const ArrayView view = view_of(points);
  PointProblem p{};
  p.points = point_view(view, "points");
  require(view.size[1] < int64_t{1} << 30, "points must have fewer than 2^30 points in a cloud");
  require(norm >= 0 && norm <= 2 && replacement >= 0 && replacement <= 2, "norm and replacement must be 0, 1 or 2");
  if (relevance) {
    const ArrayView map = view_of(*relevance);
    p.relevance = point_view(map, "relevance");
    p.relevance_channels = static_cast<int32_t>(map.size[2]);
    require(map.size[0] == view.size[0] && map.size[1] == view.size[1] && p.relevance_channels > 0,
            "relevance must have shape (N, P, c), c at least 1");
  }
  p.valid = valid_view(view_of(valid), view);
  p.rule = {alpha, beta, calibrated, static_cast<Norm>(norm), static_cast<uint64_t>(seed)};
  p.replacement = static_cast<Replacement>(replacement);
  p.constant = constant_of(value, view_of(values), view, view.size[2], "points");
  p.sample_ids = sample_ids_of(view_of(sample_ids), view.size[0]);
  p.count = view.size[0];
  p.size = static_cast<uint32_t>(view.size[1]), p.channels = static_cast<int32_t>(view.size[2]);
  return RUN(points, p, launch...);
}

}  // namespace attrdrop
