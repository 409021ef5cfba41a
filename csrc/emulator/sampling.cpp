// The CUDA kernels of farthest_point_sample, ball_query and group_points over NumPy arrays, run by the emulator.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "cuda/ball_query.cuh"
#include "cuda/farthest_point_sample.cuh"
#include "cuda/group_points.cuh"
#include "emulator/bindings.h"

namespace py = pybind11;

namespace attrdrop {

template <class T>
using Optional = std::optional<py::array_t<T>>;

// float32 and float16 arrays, bfloat16 bits as uint16.
static Dtype dtype_of(const py::array& a) {
  if (a.itemsize() == 4) return Dtype::f32;
  return a.dtype().kind() == 'f' ? Dtype::f16 : Dtype::bf16;
}

static int64_t step(const py::array& a, int dim) { return a.strides(dim) / a.itemsize(); }

static PointView point_view(const py::array& a) {
  if (a.ndim() != 3) throw py::value_error("points and centres must have 3 dimensions");
  return {a.data(), step(a, 0), step(a, 1), step(a, 2), dtype_of(a)};
}

static ValidView valid_view(const Optional<bool>& a) { return a ? ValidView{a->data(), step(*a, 0), step(*a, 1)} : ValidView{}; }

static IndexView index_view(const py::array_t<int64_t>& a) { return {a.data(), step(a, 0), step(a, 1), step(a, 2)}; }

static int32_t length(const py::array& a, int dim) { return static_cast<int32_t>(a.shape(dim)); }

// An array of the type of `like`, poisoned.
static py::array poisoned(const py::dtype& type, std::vector<py::ssize_t> shape) {
  py::array a(type, shape);
  std::memset(a.mutable_data(), 0xEE, a.nbytes());
  return a;
}

static py::array farthest_point_sample_emulated(py::array points, int64_t n, Optional<bool> valid, Optional<int64_t> start,
                                                uint64_t scheduler_seed) {
  py::array chosen = poisoned(py::dtype::of<int64_t>(), {points.shape(0), n});
  std::vector<float> nearest(points.shape(0) * points.shape(1), NAN);
  const StartView begins = start ? StartView{start->data(), step(*start, 0)} : StartView{};
  launch_farthest_point_sample({point_view(points), valid_view(valid), begins, length(points, 0), length(points, 1), n,
                                nearest.data(), static_cast<int64_t*>(chosen.mutable_data())},
                               Stream{scheduler_seed});
  return chosen;
}

static py::array ball_query_emulated(py::array points, py::array centres, std::vector<float> radius, std::vector<int32_t> k,
                                     Optional<bool> valid, uint64_t scheduler_seed) {
  QueryArgs args{};
  args.points = point_view(points), args.centres = point_view(centres), args.valid = valid_view(valid);
  args.clouds = points.shape(0), args.centres_each = centres.shape(1), args.size = length(points, 1);
  args.scales = static_cast<int32_t>(k.size()), args.columns = std::accumulate(k.begin(), k.end(), 0);
  std::transform(radius.begin(), radius.end(), args.radius2, [](float r) { return r * r; });
  std::copy(k.begin(), k.end(), args.k);
  py::array index = poisoned(py::dtype::of<int64_t>(), {points.shape(0), centres.shape(1), args.columns});
  args.out = static_cast<int64_t*>(index.mutable_data());
  launch_ball_query(args, Stream{scheduler_seed});
  return index;
}

static py::array group_points_emulated(py::array points, py::array_t<int64_t> index, std::optional<py::array> centres,
                                       uint64_t scheduler_seed) {
  py::array grouped = poisoned(points.dtype(), {points.shape(0), index.shape(1), index.shape(2), points.shape(2)});
  launch_group_points({point_view(points), index_view(index), centres ? point_view(*centres) : PointView{},
                       length(points, 0), length(points, 1), length(points, 2), index.shape(1), index.shape(2),
                       grouped.mutable_data()},
                      Stream{scheduler_seed});
  return grouped;
}

static py::array scatter_points_emulated(py::array grad, int64_t size, py::array_t<int64_t> order,
                                         py::array_t<int64_t> starts, uint64_t scheduler_seed) {
  py::array sums = poisoned(grad.dtype(), {grad.shape(0), size, grad.shape(3)});
  launch_scatter_points({{grad.data(), step(grad, 0), step(grad, 1), step(grad, 2), step(grad, 3)},
                         order.data(), starts.data(), dtype_of(grad), length(grad, 0), static_cast<int32_t>(size),
                         length(grad, 3), grad.shape(1), grad.shape(2), sums.mutable_data()},
                        Stream{scheduler_seed});
  return sums;
}

void bind_sampling(py::module_& m) {
  m.def("farthest_point_sample_cuda", &farthest_point_sample_emulated);
  m.def("ball_query_cuda", &ball_query_emulated);
  m.def("group_points_cuda", &group_points_emulated);
  m.def("scatter_points_cuda", &scatter_points_emulated);
}

}  // namespace attrdrop
