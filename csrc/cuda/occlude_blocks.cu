// occlude_blocks_ and fill_blocks_ on CUDA tensors.
#include "cuda/occlude_blocks.cuh"

#include "occlude_blocks_args.h"
#include "cuda/stream.h"

namespace attrdrop {

// images (N, C, H, W); relevance (M, h, w) or (M, c, h, w); gives the boxes (N, 4).
Tensor occlude_blocks_cuda(Tensor images, std::optional<Tensor> relevance, std::optional<Tensor> index, double p,
                           std::vector<double> scale, std::vector<double> log_ratio, double alpha, int64_t k_centers,
                           bool shift, bool per_batch, bool keep, double value, std::optional<Tensor> values,
                           bool is_random, std::optional<Tensor> source, std::optional<Tensor> source_index, int64_t seed,
                           std::optional<Tensor> sample_ids) {
  const DeviceScope scope(images);
  OccludeArgs args{};
  args.fill = block_fill(images, keep, value, values, is_random, source, source_index, seed, sample_ids);
  args.rule = block_rule(p, scale, log_ratio, alpha, k_centers, shift, per_batch, seed);
  args.relevance = relevance_view(relevance, index, images);
  Tensor boxes = new_int32(images, {images.size(0), 4});
  args.boxes = static_cast<int32_t*>(boxes.mutable_data_ptr());
  launch_occlude_blocks(args, element_type(images, "images"), scope.stream);
  return boxes;
}

void fill_blocks_cuda(Tensor images, Tensor boxes, bool keep, double value, std::optional<Tensor> values, bool is_random,
                      std::optional<Tensor> source, std::optional<Tensor> source_index, int64_t seed,
                      std::optional<Tensor> sample_ids) {
  const DeviceScope scope(images);
  const BlockFill fill = block_fill(images, keep, value, values, is_random, source, source_index, seed, sample_ids);
  check_boxes(boxes, fill.count);
  launch_fill_blocks(fill, static_cast<const int32_t*>(boxes.const_data_ptr()), element_type(images, "images"),
                     scope.stream);
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("occlude_blocks_", TORCH_BOX(&attrdrop::occlude_blocks_cuda));
  m.impl("fill_blocks_", TORCH_BOX(&attrdrop::fill_blocks_cuda));
}
