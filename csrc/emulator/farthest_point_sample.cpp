// The CUDA kernel of farthest_point_sample over NumPy arrays, run by the emulator.
#include "cuda/farthest_point_sample.cuh"

#include "emulator/arrays.h"
#include "emulator/bindings.h"

namespace attrdrop {

static py::array farthest_point_sample_emulated(py::array points, int64_t n, std::optional<py::array> valid,
                                                std::optional<py::array> start, uint64_t scheduler_seed) {
  SampleArgs args = sample_args(view_of(points), n, view_of(valid), view_of(start));
  py::array chosen = poisoned(py::dtype::of<int64_t>(), {args.clouds, n});
  std::vector<float> nearest(points.shape(0) * points.shape(1), NAN);
  args.nearest = nearest.data(), args.out = data_of<int64_t>(chosen);
  launch_farthest_point_sample(args, Stream{scheduler_seed});
  return chosen;
}

void bind_farthest_point_sample(py::module_& m) { m.def("farthest_point_sample_cuda", &farthest_point_sample_emulated); }

}  // namespace attrdrop
