// The CUDA kernels of group_points over NumPy arrays, run by the emulator.
#include "cuda/group_points.cuh"

#include "emulator/arrays.h"
#include "emulator/bindings.h"
#include "points_args.h"

namespace attrdrop {

static py::array group_points_emulated(py::array points, py::array index, std::optional<py::array> centres,
                                       uint64_t scheduler_seed) {
  GroupProblem p = group_problem(view_of(points), view_of(index), view_of(centres));
  py::array grouped = poisoned(points.dtype(), {p.clouds, p.centres_each, p.k, p.channels});
  p.out = grouped.mutable_data();
  launch_group_points(p, Stream{scheduler_seed});
  return grouped;
}

static py::array scatter_points_emulated(py::array grad, py::array index, int64_t size, std::optional<py::array> order,
                                         std::optional<py::array> starts, uint64_t scheduler_seed) {
  ScatterProblem p = scatter_problem(view_of(grad), view_of(index), size, view_of(order), view_of(starts));
  py::array sums = poisoned(grad.dtype(), {p.clouds, size, p.channels});
  p.out = sums.mutable_data();
  launch_scatter_points(p, Stream{scheduler_seed});
  return sums;
}

void bind_group_points(py::module_& m) {
  m.def("group_points_cuda", &group_points_emulated);
  m.def("scatter_points_cuda", &scatter_points_emulated);
}

}  // namespace attrdrop
