// The CUDA kernel of occlude_points over NumPy arrays, run by the emulator.
#include "cuda/occlude_points.cuh"

#include "emulator/arrays.h"
#include "emulator/bindings.h"
#include "occlude_points_args.h"

namespace attrdrop {

static py::array occlude_points_emulated(const py::array&, PointProblem p, uint64_t scheduler_seed) {
  py::array dropped = poisoned(py::dtype::of<bool>(), {p.count, p.size}), scratch;
  p.dropped = data_of<bool>(dropped);
  const auto new_scratch = [&](int64_t bytes) {
    scratch = poisoned(py::dtype::of<uint8_t>(), {bytes});
    return scratch.mutable_data();
  };
  launch_occlude_points(p, new_scratch, Stream{scheduler_seed});
  return dropped;
}

void bind_occlude_points(py::module_& m) {
  m.def("occlude_points_cuda", &occlude_points_op<py::array, occlude_points_emulated, uint64_t>);
}

}  // namespace attrdrop
