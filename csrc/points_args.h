// Arguments of the operators on points as the kernels want them: for the CPU, for CUDA and for the emulator.
#pragma once
#include <vector>

#include "array_view.h"
#include "points.h"

namespace attrdrop {

// points (N, P, C), with a point in each cloud, and centres (N, S, C) as well.
inline PointView point_view(const ArrayView& t, const char* name) {
  check_dim(t, 3, name);
  return {t.data, t.stride[0], t.stride[1], t.stride[2], float_type(t.kind, name)};
}

inline void check_cloud(const ArrayView& points, int64_t channels) {
  check_dim(points, 3, "points");
  require(points.size[2] >= channels, "points must have at least ", channels, " channels");
  require(points.size[0] == 0 || points.size[1] > 0, "points must have a point in each cloud");
  require(points.size[1] < int64_t{1} << 31, "points must have fewer than 2^31 points in a cloud");
}

inline ValidView valid_view(const OptionalView& valid, const ArrayView& points) {
  if (!valid) return {};
  check_dim(*valid, 2, "valid");
  require(valid->kind == Kind::boolean && valid->size[0] == points.size[0] && valid->size[1] == points.size[1],
          "valid must be bool, one for each point");
  return {valid->as<bool>(), valid->stride[0], valid->stride[1]};
}

inline IndexView index_view(const ArrayView& index, int64_t clouds) {
  check_dim(index, 3, "index");
  require(index.kind == Kind::i64 && index.size[0] == clouds, "index must be int64, (N, S, k)");
  return {index.as<int64_t>(), index.stride[0], index.stride[1], index.stride[2]};
}

// Centres, of the type of the points: (N, S, at least 3).
inline void check_centres(const ArrayView& centres, const ArrayView& points) {
  check_dim(centres, 3, "centres");
  require(centres.kind == points.kind && centres.size[0] == points.size[0] && centres.size[2] >= 3,
          "centres must have the type of points and shape (N, S, 3)");
}

inline void check_scales(const std::vector<double>& radius, const std::vector<int64_t>& k) {
  require(radius.size() == k.size() && !k.empty() && k.size() <= MAX_SCALES, "radius and k must be 1 to ", MAX_SCALES,
          " numbers each, equally many");
  for (const int64_t least : k) require(least >= 1 && least < int64_t{1} << 31, "k must be positive, got ", least);
}

// The squares with which squared distances are compared.
inline std::vector<float> squared_radii(const std::vector<double>& radius) {
  std::vector<float> squares;
  for (const double r : radius) squares.push_back(static_cast<float>(r) * static_cast<float>(r));
  return squares;
}

inline StartView start_view(const OptionalView& start, int64_t clouds) {
  if (!start) return {};
  require(start->kind == Kind::i64 && start->dim == 1 && start->size[0] == clouds, "start must be int64, one for each cloud");
  return {start->as<int64_t>(), start->stride[0]};
}

// All but where the rows go.
inline GroupProblem group_problem(const ArrayView& points, const ArrayView& index, const OptionalView& centres) {
  check_cloud(points, centres ? 3 : 0);
  GroupProblem p{};
  p.points = point_view(points, "points"), p.index = index_view(index, points.size[0]);
  if (centres) {
    check_centres(*centres, points);
    require(centres->size[1] == index.size[1], "centres must be one for each row of index");
    p.centres = point_view(*centres, "centres");
  }
  p.clouds = static_cast<int32_t>(points.size[0]), p.size = static_cast<int32_t>(points.size[1]);
  p.channels = static_cast<int32_t>(points.size[2]);
  p.centres_each = index.size[1], p.k = index.size[2];
  return p;
}

// All but where the sums go.
inline ScatterProblem scatter_problem(const ArrayView& grad, const ArrayView& index, int64_t size,
                                      const OptionalView& order, const OptionalView& starts) {
  check_dim(grad, 4, "grad");
  ScatterProblem p{};
  p.grad = {grad.data, grad.stride[0], grad.stride[1], grad.stride[2], grad.stride[3]}, p.type = float_type(grad.kind, "grad");
  p.index = index_view(index, grad.size[0]);
  for (int dim = 0; dim < 3; ++dim) require(grad.size[dim] == index.size[dim], "grad must have a row for each index");
  if (order && starts) {
    require(order->is_contiguous() && starts->is_contiguous() && order->numel() == index.numel() &&
                starts->numel() == grad.size[0] * size + 1,
            "order and starts must be the inverse of index, contiguous");
    p.order = order->as<int64_t>(), p.starts = starts->as<int64_t>();
  }
  p.clouds = static_cast<int32_t>(grad.size[0]), p.size = static_cast<int32_t>(size);
  p.channels = static_cast<int32_t>(grad.size[3]);
  p.centres_each = grad.size[1], p.k = grad.size[2];
  return p;
}

}  // namespace attrdrop
