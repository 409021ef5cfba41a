// Points of a cloud as CUDA kernels read them.
#pragma once
#include "cuda/types.cuh"
#include "points.h"

namespace attrdrop {

__device__ __forceinline__ float load_widened(const void* data, Dtype type, int64_t at) {
  if (type == Dtype::f32) return static_cast<const float*>(data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(data)[at];
  return type == Dtype::bf16 ? Bf16::widen(bits) : F16::widen(bits);
}

__device__ __forceinline__ Point load_point(const PointView& view, int64_t cloud, int64_t index) {
  const int64_t at = cloud * view.cloud + index * view.point;
  return {load_widened(view.data, view.type, at), load_widened(view.data, view.type, at + view.channel),
          load_widened(view.data, view.type, at + 2 * view.channel)};
}

__device__ __forceinline__ float squared_distance(const Point& a, const Point& b) {
  return squared_distance(a.x - b.x, a.y - b.y, a.z - b.z);
}

// Not padding, and no coordinate NaN or infinite.
__device__ __forceinline__ bool is_usable(const ValidView& valid, int64_t cloud, int64_t index, const Point& p) {
  return is_finite(p) && is_valid(valid, cloud, index);
}

// An index moved into [0, size).
__device__ __forceinline__ int32_t moved_into_range(int64_t index, int32_t size) {
  return static_cast<int32_t>(index < 0 ? 0 : index < size ? index : size - 1);
}

}  // namespace attrdrop
