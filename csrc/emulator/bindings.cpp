// A sample kernel over NumPy arrays, run by the emulator. `scheduler_seed` decides in which order threads run.
#include "emulator/bindings.h"

#include <pybind11/numpy.h>

#include <cstring>

#include "emulator/samples.cuh"

namespace py = pybind11;

namespace attrdrop {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Sums 128 numbers in a block, with one mistake or none; see samples.cuh.
static py::array_t<int> run_sample(Array<int> values, Mistake mistake, uint64_t seed) {
  if (values.size() != SAMPLE_THREADS) throw py::value_error("values must be 128 numbers");
  alignas(16) int in[SAMPLE_THREADS + 4] = {};
  std::memcpy(in, values.data(), sizeof(int) * SAMPLE_THREADS);
  py::array_t<int> out(SAMPLE_THREADS);
  int* result = out.mutable_data();
  ATTRDROP_LAUNCH(sample_kernel, 1, SAMPLE_THREADS, SAMPLE_THREADS * sizeof(int), Stream{seed}, in, result, mistake);
  return out;
}

void bind_emulator(py::module_& m) {
  py::enum_<Mistake>(m, "Mistake")
      .value("none", Mistake::none)
      .value("missing_barrier", Mistake::missing_barrier)
      .value("missing_warp_barrier", Mistake::missing_warp_barrier)
      .value("divergent_barrier", Mistake::divergent_barrier)
      .value("barrier_after_exit", Mistake::barrier_after_exit)
      .value("missing_lane", Mistake::missing_lane)
      .value("write_past_dynamic_shared", Mistake::write_past_dynamic_shared)
      .value("write_past_static_shared", Mistake::write_past_static_shared)
      .value("missing_wait", Mistake::missing_wait)
      .value("copy_never_waited_for", Mistake::copy_never_waited_for)
      .value("misaligned_copy", Mistake::misaligned_copy)
      .value("unwritten_shared", Mistake::unwritten_shared);
  m.def("run_sample", &run_sample, py::arg("values"), py::arg("mistake"), py::arg("scheduler_seed"));
}

}  // namespace attrdrop
