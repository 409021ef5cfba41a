// The CUDA kernels of occlude_blocks over NumPy arrays, run by the emulator.
#include "cuda/occlude_blocks.cuh"

#include "emulator/arrays.h"
#include "emulator/bindings.h"
#include "occlude_blocks_args.h"

namespace attrdrop {

static py::array occlude_blocks_emulated(const py::array&, BlockProblem p, uint64_t scheduler_seed) {
  py::array boxes = poisoned(py::dtype::of<int32_t>(), {p.fill.count, 4});
  p.boxes = data_of<int32_t>(boxes);
  launch_occlude_blocks(p, Stream{scheduler_seed});
  return boxes;
}

static void fill_blocks_emulated(const py::array&, const BlockFill& fill, const int32_t* boxes, uint64_t scheduler_seed) {
  launch_fill_blocks(fill, boxes, Stream{scheduler_seed});
}

void bind_occlude_blocks(py::module_& m) {
  m.def("occlude_blocks_cuda", &occlude_blocks_op<py::array, occlude_blocks_emulated, uint64_t>);
  m.def("fill_blocks_cuda", &fill_blocks_op<py::array, fill_blocks_emulated, uint64_t>);
}

}  // namespace attrdrop
