// The CUDA kernels over NumPy arrays, run by the emulator. `scheduler_seed` decides in which order threads run.
#include "emulator/bindings.h"

#include <pybind11/numpy.h>

#include <cstring>

#include "cuda/pack_mask.cuh"
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

static py::array_t<uint32_t> pack_mask_emulated(py::array_t<bool> mask, uint64_t seed) {
  const int64_t rows = mask.shape(0), n = mask.shape(1);
  py::array_t<uint32_t> bits({rows, word_count(n)});
  launch_pack_mask(reinterpret_cast<const uint8_t*>(mask.data()), bits.mutable_data(), rows, n, mask.strides(0),
                   mask.strides(1), Stream{seed});
  return bits;
}

static py::array_t<bool> unpack_mask_emulated(Array<uint32_t> bits, int64_t n, uint64_t seed) {
  const int64_t rows = bits.shape(0);
  py::array_t<bool> mask({rows, n});
  launch_unpack_mask(bits.data(), reinterpret_cast<uint8_t*>(mask.mutable_data()), rows, n, bits.shape(1), Stream{seed});
  return mask;
}

static py::array_t<uint32_t> transpose_mask_emulated(Array<uint32_t> rows, int64_t n_k, uint64_t seed) {
  const int64_t heads = rows.shape(0), n_q = rows.shape(1), words = rows.shape(2);
  py::array_t<uint32_t> cols({heads, n_k, word_count(n_q)});
  launch_transpose_mask(rows.data(), cols.mutable_data(), heads, n_q, n_k, n_q * words, words, Stream{seed});
  return cols;
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
  m.def("pack_mask_cuda", &pack_mask_emulated, py::arg("mask"), py::arg("scheduler_seed") = 0);
  m.def("unpack_mask_cuda", &unpack_mask_emulated, py::arg("bits"), py::arg("n"), py::arg("scheduler_seed") = 0);
  m.def("transpose_mask_cuda", &transpose_mask_emulated, py::arg("rows"), py::arg("n_k"), py::arg("scheduler_seed") = 0);
}

}  // namespace attrdrop
