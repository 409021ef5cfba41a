// The CUDA kernels of farthest_point_sample, ball_query and group_points over NumPy arrays, run by the emulator.
#include <algorithm>
#include <numeric>

#include "cuda/ball_query.cuh"
#include "cuda/farthest_point_sample.cuh"
#include "cuda/group_points.cuh"
#include "emulator/arrays.h"
#include "emulator/bindings.h"

namespace attrdrop {

static IndexView index_view(const py::array_t<int64_t>& a) { return {a.data(), step(a, 0), step(a, 1), step(a, 2)}; }

static int32_t length(const py::array& a, int dim) { return static_cast<int32_t>(a.shape(dim)); }

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
