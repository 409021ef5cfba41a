// The CUDA kernel of occlude_points over NumPy arrays, run by the emulator.
#include "cuda/occlude_points.cuh"

#include "emulator/arrays.h"
#include "emulator/bindings.h"

namespace attrdrop {

// As the operator; `value` is its bits.
static py::array occlude_points_emulated(py::array points, std::optional<py::array> relevance, Optional<bool> valid,
                                         double alpha, double beta, bool calibrated, int norm, int replacement,
                                         uint32_t value, std::optional<py::array> values, uint64_t seed,
                                         Numbers sample_ids, uint64_t scheduler_seed) {
  PointProblem p{};
  p.points = point_view(points);
  if (relevance) p.relevance = point_view(*relevance), p.relevance_channels = static_cast<int32_t>(relevance->shape(2));
  p.valid = valid_view(valid);
  p.rule = {alpha, beta, calibrated, static_cast<Norm>(norm), seed};
  p.replacement = static_cast<Replacement>(replacement);
  p.constant = constant_of(value, values);
  p.sample_ids = sample_ids_of(sample_ids);
  p.count = points.shape(0);
  p.size = static_cast<uint32_t>(points.shape(1)), p.channels = static_cast<int32_t>(points.shape(2));
  py::array dropped = poisoned(py::dtype::of<bool>(), {points.shape(0), points.shape(1)});
  p.dropped = static_cast<bool*>(dropped.mutable_data());
  py::array scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch = poisoned(py::dtype::of<uint8_t>(), {bytes});
    return scratch.mutable_data();
  };
  launch_occlude_points(p, new_scratch, Stream{scheduler_seed});
  return dropped;
}

void bind_occlude_points(py::module_& m) { m.def("occlude_points_cuda", &occlude_points_emulated); }

}  // namespace attrdrop
