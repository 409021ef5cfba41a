// The CUDA kernels of keep_mask, random_keep_mask and keep_scores over NumPy arrays, run by the emulator.
#include "cuda/keep_mask_launch.cuh"

#include <memory>

#include "emulator/arrays.h"
#include "emulator/bindings.h"

namespace attrdrop {

// `shared_bytes` and `scratch_bytes` are what the device would have. Gives the counts.
static py::array_t<int64_t> run_keep_mask(KeepMaskArgs args, uint64_t scheduler_seed, int shared_bytes,
                                          int64_t scratch_bytes) {
  py::array_t<int64_t> counts(4);
  std::memset(counts.mutable_data(), 0, counts.nbytes());
  args.counts = reinterpret_cast<unsigned long long*>(counts.mutable_data());
  std::unique_ptr<unsigned char[]> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch.reset(new unsigned char[bytes]);
    std::memset(scratch.get(), 0xEE, bytes);
    return scratch.get();
  };
  launch_keep_mask(args, {shared_bytes, scratch_bytes}, new_scratch, Stream{scheduler_seed});
  return counts;
}

static py::tuple keep_mask_emulated(const py::array&, KeepMaskArgs args, uint64_t scheduler_seed, int shared_bytes,
                                    int64_t scratch_bytes) {
  py::array rows = poisoned(py::dtype::of<int32_t>(), {args.batch, args.heads, args.n_q, word_count(args.n_k)});
  py::array cols = poisoned(py::dtype::of<int32_t>(), {args.batch, args.heads, args.n_k, word_count(args.n_q)});
  args.rows = data_of<uint32_t>(rows), args.cols = data_of<uint32_t>(cols);
  return py::make_tuple(rows, cols, run_keep_mask(args, scheduler_seed, shared_bytes, scratch_bytes));
}

static py::tuple keep_scores_emulated(const py::array&, KeepMaskArgs args, uint64_t scheduler_seed, int shared_bytes,
                                      int64_t scratch_bytes) {
  py::array rows = poisoned(py::dtype::of<int32_t>(), {args.batch, args.n_q, word_count(args.n_k)});
  args.rows = data_of<uint32_t>(rows);
  return py::make_tuple(rows, run_keep_mask(args, scheduler_seed, shared_bytes, scratch_bytes));
}

void bind_keep_mask(py::module_& m) {
  m.def("keep_mask_cuda", &keep_mask_op<py::array, &keep_mask_emulated, uint64_t, int, int64_t>);
  m.def("random_keep_mask_cuda", &random_keep_mask_op<py::array, &keep_mask_emulated, uint64_t, int, int64_t>);
  m.def("keep_scores_cuda", &keep_scores_op<py::array, &keep_scores_emulated, uint64_t, int, int64_t>);
}

}  // namespace attrdrop
