// The CUDA kernel of ball_query over NumPy arrays, run by the emulator.
#include "cuda/ball_query.cuh"

#include "emulator/arrays.h"
#include "emulator/bindings.h"

namespace attrdrop {

static py::array ball_query_emulated(py::array points, py::array centres, std::vector<double> radius, std::vector<int64_t> k,
                                     std::optional<py::array> valid, uint64_t scheduler_seed) {
  QueryArgs args = query_args(view_of(points), view_of(centres), radius, k, view_of(valid));
  py::array index = poisoned(py::dtype::of<int64_t>(), {args.clouds, args.centres_each, args.columns});
  args.out = data_of<int64_t>(index);
  launch_ball_query(args, Stream{scheduler_seed});
  return index;
}

void bind_ball_query(py::module_& m) { m.def("ball_query_cuda", &ball_query_emulated); }

}  // namespace attrdrop
