// Clouds of points: views for CPU and CUDA kernels, and the distance on which all of them agree.
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "philox.h"

namespace attrdrop {

constexpr int MAX_SCALES = 32;  // of a ball query: one for each lane of a warp

// (N, P, C), coordinates in the first three channels; strides count elements.
struct PointView {
  const void* data;
  int64_t cloud, point, channel;
  Dtype type;
};

struct Point {
  float x, y, z;
};

ATTRDROP_HD bool is_finite(const Point& p) { return fabsf(p.x) < INFINITY && fabsf(p.y) < INFINITY && fabsf(p.z) < INFINITY; }

// bool (N, P), false where a point is padding.
struct ValidView {
  const bool* data;  // null: no point is padding
  int64_t cloud, point;
};

ATTRDROP_HD bool is_valid(const ValidView& valid, int64_t cloud, int64_t point) {
  return !valid.data || valid.data[cloud * valid.cloud + point * valid.point];
}

// int64 (N,): the point at which each cloud begins.
struct StartView {
  const int64_t* data;  // null: the first that is valid
  int64_t cloud;
};

// int64 (N, S, k): which points belong to a centre.
struct IndexView {
  const int64_t* data;
  int64_t cloud, centre, place;
};

// (N, S, k, C): rows of channels that are gathered from points, or added to them; strides count elements.
struct RowView {
  const void* data;
  int64_t cloud, centre, place, channel;
};

// group_points.
struct GroupProblem {
  PointView points;   // (N, P, C)
  IndexView index;    // (N, S, k)
  PointView centres;  // (N, S, 3); data null: nothing is subtracted
  int32_t clouds, size, channels;
  int64_t centres_each, k;
  void* out;  // (N, S, k, C)
};

// scatter_points, its backward.
struct ScatterProblem {
  RowView grad;           // (N, S, k, C)
  IndexView index;        // (N, S, k)
  const int64_t* order;   // (N * S * k) places in the flat index, ascending by cloud, point and place; null on the CPU
  const int64_t* starts;  // (N * P + 1) where those of each point begin; likewise
  Dtype type;
  int32_t clouds, size, channels;
  int64_t centres_each, k;
  void* out;  // (N, P, C)
};

// dx*dx + dy*dy + dz*dz, each product and sum rounded: nvcc would fuse them, and every backend must choose the same points.
// Real: float, or a vector of them.
template <class Real>
ATTRDROP_HD Real squared_distance(Real dx, Real dy, Real dz) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
#else
  return dx * dx + dy * dy + dz * dz;
#endif
}

}  // namespace attrdrop
