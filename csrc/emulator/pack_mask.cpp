// The CUDA kernels of pack_mask over NumPy arrays, run by the emulator.
#include "cuda/pack_mask.cuh"

#include <pybind11/numpy.h>

#include "emulator/bindings.h"

namespace py = pybind11;

namespace attrdrop {

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

static py::array_t<uint32_t> pack_mask_emulated(py::array_t<bool> mask, uint64_t seed) {
  const int64_t rows = mask.shape(0), n = mask.shape(1);
  py::array_t<uint32_t> bits({rows, word_count(n)});
  launch_pack_mask(reinterpret_cast<const uint8_t*>(mask.data()), bits.mutable_data(), rows, n, mask.strides(0),
                   mask.strides(1), Stream{seed});
  return bits;
}

static py::array_t<bool> unpack_mask_emulated(Words bits, int64_t n, uint64_t seed) {
  const int64_t rows = bits.shape(0);
  py::array_t<bool> mask({rows, n});
  launch_unpack_mask(bits.data(), reinterpret_cast<uint8_t*>(mask.mutable_data()), rows, n, bits.shape(1), Stream{seed});
  return mask;
}

static py::array_t<uint32_t> transpose_mask_emulated(Words rows, int64_t n_k, uint64_t seed) {
  const int64_t heads = rows.shape(0), n_q = rows.shape(1), words = rows.shape(2);
  py::array_t<uint32_t> cols({heads, n_k, word_count(n_q)});
  launch_transpose_mask(rows.data(), cols.mutable_data(), heads, n_q, n_k, n_q * words, words, Stream{seed});
  return cols;
}

void bind_pack_mask(py::module_& m) {
  m.def("pack_mask_cuda", &pack_mask_emulated, py::arg("mask"), py::arg("scheduler_seed") = 0);
  m.def("unpack_mask_cuda", &unpack_mask_emulated, py::arg("bits"), py::arg("n"), py::arg("scheduler_seed") = 0);
  m.def("transpose_mask_cuda", &transpose_mask_emulated, py::arg("rows"), py::arg("n_k"), py::arg("scheduler_seed") = 0);
}

}  // namespace attrdrop
