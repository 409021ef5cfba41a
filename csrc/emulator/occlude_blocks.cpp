// The CUDA kernels of occlude_blocks over NumPy arrays, run by the emulator.
#include "cuda/occlude_blocks.cuh"

#include <utility>

#include "emulator/arrays.h"
#include "emulator/bindings.h"

namespace attrdrop {

using Pair = std::pair<double, double>;

static ImageView image_view(py::array& a) {
  if (a.ndim() != 4) throw py::value_error("images must have 4 dimensions");
  const auto step = [&](int dim) { return a.strides(dim) / a.itemsize(); };
  return {a.mutable_data(), step(0), step(1), step(2), step(3)};
}

static BlockFill block_fill(py::array& images, bool keep, uint32_t value, std::optional<py::array>& values, bool is_random,
                            std::optional<py::array>& source, Numbers& source_index, uint64_t seed, Numbers& sample_ids) {
  BlockFill fill{};
  fill.images = image_view(images);
  if (source) fill.source = image_view(*source), fill.sources = source->shape(0);
  if (source_index) fill.source_index = source_index->data(), fill.source_index_stride = 1;
  fill.constant = constant_of(value, values);
  fill.is_random = is_random, fill.keep = keep, fill.seed = seed;
  fill.sample_ids = sample_ids_of(sample_ids);
  fill.count = images.shape(0), fill.channels = static_cast<int32_t>(images.shape(1));
  fill.height = static_cast<int32_t>(images.shape(2)), fill.width = static_cast<int32_t>(images.shape(3));
  return fill;
}

static RelevanceView relevance_view(const py::array& a, const Numbers& index) {
  const int channels = a.ndim() == 4, last = 2 + channels;
  const auto step = [&](int dim) { return a.strides(dim) / a.itemsize(); };
  RelevanceView view{};
  view.data = a.data(), view.type = element_of(a), view.count = a.shape(0);
  view.row = step(0), view.channel = channels ? step(1) : 0, view.line = step(last - 1), view.column = step(last);
  view.channels = channels ? static_cast<int32_t>(a.shape(1)) : 1;
  view.height = static_cast<int32_t>(a.shape(last - 1)), view.width = static_cast<int32_t>(a.shape(last));
  view.is_flat = view.column == 1 && view.line == view.width;
  if (index) view.has_index = true, view.index = index->data(), view.index_stride = 1;
  return view;
}

// As the operator; `value` is its bits.
static py::array_t<int32_t> occlude_blocks_emulated(py::array images, std::optional<py::array> relevance, Numbers index,
                                                    double p, Pair scale, Pair log_ratio, double alpha, int64_t k_centers,
                                                    bool shift, bool per_batch, bool keep, uint32_t value,
                                                    std::optional<py::array> values, bool is_random,
                                                    std::optional<py::array> source, Numbers source_index, uint64_t seed,
                                                    Numbers sample_ids, uint64_t scheduler_seed) {
  OccludeArgs args{};
  args.fill = block_fill(images, keep, value, values, is_random, source, source_index, seed, sample_ids);
  args.rule = {p, alpha, {scale.first, scale.second}, {log_ratio.first, log_ratio.second}, k_centers, shift, per_batch, seed};
  if (relevance) args.relevance = relevance_view(*relevance, index);
  py::array_t<int32_t> boxes({images.shape(0), py::ssize_t{4}});
  std::memset(boxes.mutable_data(), 0xEE, boxes.nbytes());
  args.boxes = boxes.mutable_data();
  launch_occlude_blocks(args, element_of(images), Stream{scheduler_seed});
  return boxes;
}

static void fill_blocks_emulated(py::array images, Array<int32_t> boxes, bool keep, uint32_t value,
                                 std::optional<py::array> values, bool is_random, std::optional<py::array> source,
                                 Numbers source_index, uint64_t seed, Numbers sample_ids, uint64_t scheduler_seed) {
  launch_fill_blocks(block_fill(images, keep, value, values, is_random, source, source_index, seed, sample_ids),
                     boxes.data(), element_of(images), Stream{scheduler_seed});
}

void bind_occlude_blocks(py::module_& m) {
  m.def("occlude_blocks_cuda", &occlude_blocks_emulated);
  m.def("fill_blocks_cuda", &fill_blocks_emulated);
}

}  // namespace attrdrop
