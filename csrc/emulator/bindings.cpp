// The CUDA kernels over NumPy arrays, run by the emulator. `scheduler_seed` decides in which order threads run.
#include "emulator/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>

#include "cuda/keep_mask_launch.cuh"
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

// A float32 or float16 array, or bfloat16 bits as uint16; (B, H, n, d), any strides but a unit last one.
static Operand operand(const py::array& a, bool& is_aligned) {
  if (a.ndim() != 4) throw py::value_error("x, y and weights must have 4 dimensions");
  if (a.shape(3) > 1 && a.strides(3) != a.itemsize()) throw py::value_error("the last stride must be 1");
  int64_t offsets = static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.data()));
  for (int dim = 0; dim < 3; ++dim) offsets |= a.shape(dim) > 1 ? a.strides(dim) : 0;
  is_aligned &= offsets % 16 == 0;
  return {a.data(), a.strides(0) / a.itemsize(), a.strides(1) / a.itemsize(), a.strides(2) / a.itemsize()};
}

using Weight = std::tuple<py::array, py::array, Array<float>, float>;

// As the operator; `shared_bytes` and `scratch_bytes` are what the device would have.
static py::tuple keep_mask_emulated(py::array x, py::array y, double p, double q, uint64_t key, uint32_t layer,
                                    std::optional<py::array_t<uint32_t>> valid, bool is_causal, bool low, bool bf16_keys,
                                    std::optional<Array<int64_t>> sample_ids, std::optional<Weight> weight,
                                    uint64_t seed, int shared_bytes, int64_t scratch_bytes) {
  KeepMaskArgs args{};
  args.is_aligned = true;
  args.x = operand(x, args.is_aligned);
  args.y = operand(y, args.is_aligned);
  if (weight) {
    args.weight_q = operand(std::get<0>(*weight), args.is_aligned);
    args.weight_k = operand(std::get<1>(*weight), args.is_aligned);
    args.weight_lse = std::get<2>(*weight).data();
    args.weight_scale = std::get<3>(*weight);
    args.d_weight = static_cast<int32_t>(std::get<0>(*weight).shape(3));
  }
  if (valid) {
    const auto step = [&](int dim) { return valid->shape(dim) == 1 ? 0 : valid->strides(dim) / 4; };
    args.valid = valid->data();
    args.valid_batch = step(0), args.valid_head = step(1), args.valid_row = step(2);
  }
  if (sample_ids) args.sample_ids = sample_ids->data(), args.sample_stride = 1;
  const int64_t batch = x.shape(0), heads = x.shape(1), n_q = x.shape(2), n_k = y.shape(2);
  py::array_t<uint32_t> rows({batch, heads, n_q, word_count(n_k)}), cols({batch, heads, n_k, word_count(n_q)});
  std::memset(rows.mutable_data(), 0xEE, rows.nbytes());
  std::memset(cols.mutable_data(), 0xEE, cols.nbytes());
  py::array_t<unsigned long long> counts(4);
  std::memset(counts.mutable_data(), 0, counts.nbytes());
  args.rows = rows.mutable_data(), args.cols = cols.mutable_data(), args.counts = counts.mutable_data();
  args.seed = key, args.layer = layer;
  args.batch = static_cast<int32_t>(batch), args.heads = static_cast<int32_t>(heads);
  args.groups = static_cast<int32_t>(heads / y.shape(1));
  args.n_q = static_cast<int32_t>(n_q), args.n_k = static_cast<int32_t>(n_k), args.d = static_cast<int32_t>(x.shape(3));
  set_rule(args, p, q, low);
  args.is_causal = is_causal;
  const Input input = x.itemsize() == 4 ? Input::f32 : x.dtype().kind() == 'f' ? Input::f16 : Input::bf16;
  std::unique_ptr<unsigned char[]> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch.reset(new unsigned char[bytes]);
    std::memset(scratch.get(), 0xEE, bytes);
    return scratch.get();
  };
  launch_keep_mask(args, input, bf16_keys, {shared_bytes, scratch_bytes}, new_scratch, Stream{seed});
  return py::make_tuple(rows, cols, counts);
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
  m.def("keep_mask_cuda", &keep_mask_emulated, py::arg("x"), py::arg("y"), py::arg("p"), py::arg("q"), py::arg("seed"),
        py::arg("layer") = 0, py::arg("valid") = py::none(), py::arg("is_causal") = false, py::arg("low") = false,
        py::arg("bf16_keys") = false, py::arg("sample_ids") = py::none(), py::arg("weight") = py::none(),
        py::arg("scheduler_seed") = 0, py::arg("shared_bytes") = 232448, py::arg("scratch_bytes") = SCRATCH_BYTES);
}

}  // namespace attrdrop
