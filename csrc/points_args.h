// Tensors of the operators on points as the kernels want them, for the CPU and the CUDA side.
#pragma once
#include <vector>

#include "checks.h"
#include "points.h"

namespace attrdrop {

// points (N, P, C), with a point in each cloud, and centres (N, S, C) as well.
inline PointView point_view(const Tensor& t, const char* name) {
  check_dim(t, 3, name);
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), kernel_dtype(t, name)};
}

inline void check_cloud(const Tensor& points, int64_t channels) {
  check_dim(points, 3, "points");
  STD_TORCH_CHECK(points.size(2) >= channels, "points must have at least ", channels, " channels");
  STD_TORCH_CHECK(points.size(0) == 0 || points.size(1) > 0, "points must have a point in each cloud");
  STD_TORCH_CHECK(points.size(1) < int64_t{1} << 31, "points must have fewer than 2^31 points in a cloud");
}

inline ValidView valid_view(const std::optional<Tensor>& valid, const Tensor& points) {
  if (!valid) return {};
  check_dim(*valid, 2, "valid");
  STD_TORCH_CHECK(valid->scalar_type() == ScalarType::Bool && valid->size(0) == points.size(0) &&
                      valid->size(1) == points.size(1),
                  "valid must be bool, one for each point");
  return {static_cast<const bool*>(valid->const_data_ptr()), valid->stride(0), valid->stride(1)};
}

inline IndexView index_view(const Tensor& index, int64_t clouds) {
  check_dim(index, 3, "index");
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && index.size(0) == clouds, "index must be int64, (N, S, k)");
  return {index.const_data_ptr<int64_t>(), index.stride(0), index.stride(1), index.stride(2)};
}

// grad (N, S, k, C) of the rows that index (N, S, k) gathers.
inline RowView row_view(const Tensor& grad, const Tensor& index) {
  check_dim(grad, 4, "grad"), check_dim(index, 3, "index");
  for (int dim = 0; dim < 3; ++dim)
    STD_TORCH_CHECK(grad.size(dim) == index.size(dim), "grad must have a row for each index");
  return {grad.const_data_ptr(), grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3)};
}

// Centres, of the type of the points: (N, S, at least 3).
inline void check_centres(const Tensor& centres, const Tensor& points) {
  check_dim(centres, 3, "centres");
  STD_TORCH_CHECK(centres.scalar_type() == points.scalar_type() && centres.size(0) == points.size(0) && centres.size(2) >= 3,
                  "centres must have the type of points and shape (N, S, 3)");
}

inline void check_group(const Tensor& points, const Tensor& index, const std::optional<Tensor>& centres) {
  check_cloud(points, centres ? 3 : 0);
  check_dim(index, 3, "index");
  if (!centres) return;
  check_centres(*centres, points);
  STD_TORCH_CHECK(centres->size(1) == index.size(1), "centres must be one for each row of index");
}

inline void check_scales(const std::vector<double>& radius, const std::vector<int64_t>& k) {
  STD_TORCH_CHECK(radius.size() == k.size() && !k.empty() && k.size() <= MAX_SCALES, "radius and k must be 1 to ", MAX_SCALES,
                  " numbers each, equally many");
  for (const int64_t least : k) STD_TORCH_CHECK(least >= 1 && least < int64_t{1} << 31, "k must be positive, got ", least);
}

// The squares with which squared distances are compared.
inline std::vector<float> squared_radii(const std::vector<double>& radius) {
  std::vector<float> squares;
  for (const double r : radius) squares.push_back(static_cast<float>(r) * static_cast<float>(r));
  return squares;
}

inline StartView start_view(const std::optional<Tensor>& start, int64_t clouds) {
  if (!start) return {};
  STD_TORCH_CHECK(start->scalar_type() == ScalarType::Long && start->dim() == 1 && start->size(0) == clouds,
                  "start must be int64, one for each cloud");
  return {start->const_data_ptr<int64_t>(), start->stride(0)};
}

}  // namespace attrdrop
