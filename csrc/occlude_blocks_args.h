// Tensors of occlude_blocks_ and fill_blocks_ as the kernels want them, for the CPU and the CUDA side.
#pragma once
#include <vector>

#include "occlude_blocks.h"
#include "occlusion_args.h"

namespace attrdrop {

inline ImageView image_view(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline BlockFill block_fill(const Tensor& images, bool keep, double value, const std::optional<Tensor>& values,
                            bool is_random, const std::optional<Tensor>& source,
                            const std::optional<Tensor>& source_index, int64_t seed,
                            const std::optional<Tensor>& sample_ids) {
  check_dim(images, 4, "images");
  STD_TORCH_CHECK(images.size(2) * images.size(3) < int64_t{1} << 31, "images must have fewer than 2^31 pixels each");
  BlockFill fill{};
  fill.images = image_view(images);
  if (source) {
    check_dim(*source, 4, "source");
    STD_TORCH_CHECK(source->scalar_type() == images.scalar_type(), "source must have the type of images");
    for (int dim = 1; dim < 4; ++dim)
      STD_TORCH_CHECK(source->size(dim) == images.size(dim), "source must have the shape of images");
    fill.sources = source->size(0);
    STD_TORCH_CHECK(fill.sources >= (source_index ? images.size(0) > 0 : images.size(0)), "source has too few images");
    fill.source = image_view(*source);
    if (source_index) {
      STD_TORCH_CHECK(source_index->scalar_type() == ScalarType::Long && source_index->numel() == images.size(0),
                      "source_index must be int64, one for each image");
      fill.source_index = source_index->const_data_ptr<int64_t>();
      fill.source_index_stride = source_index->stride(0);
    }
  }
  fill.constant = constant_of(value, values, images, images.size(1), "images");
  fill.is_random = is_random, fill.keep = keep;
  fill.seed = static_cast<uint64_t>(seed);
  fill.sample_ids = sample_ids_of(sample_ids, images.size(0));
  fill.count = images.size(0);
  fill.channels = static_cast<int32_t>(images.size(1));
  fill.height = static_cast<int32_t>(images.size(2)), fill.width = static_cast<int32_t>(images.size(3));
  return fill;
}

inline BlockRule block_rule(double p, const std::vector<double>& scale, const std::vector<double>& log_ratio, double alpha,
                            int64_t k_centers, bool shift, bool per_batch, int64_t seed) {
  STD_TORCH_CHECK(scale.size() == 2 && log_ratio.size() == 2, "scale and ratio must be pairs");
  STD_TORCH_CHECK(k_centers >= 1, "k_centers must be positive");
  return {p, alpha, {scale[0], scale[1]}, {log_ratio[0], log_ratio[1]}, k_centers, shift, per_batch,
          static_cast<uint64_t>(seed)};
}

inline void check_boxes(const Tensor& boxes, int64_t count) {
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Int && boxes.is_contiguous() && boxes.numel() == 4 * count,
                  "boxes must be contiguous int32, four for each image");
}

inline RelevanceView relevance_view(const std::optional<Tensor>& relevance, const std::optional<Tensor>& index,
                                    const Tensor& images) {
  RelevanceView view{};
  if (!relevance) {
    STD_TORCH_CHECK(!index, "index needs relevance");
    return view;
  }
  const Tensor& t = *relevance;
  STD_TORCH_CHECK(t.dim() == 3 || t.dim() == 4, "relevance must have 3 or 4 dimensions, got ", t.dim());
  const bool has_channels = t.dim() == 4;
  const int last = has_channels ? 3 : 2;
  view.type = relevance_type(t);
  view.count = t.size(0);
  view.channels = has_channels ? static_cast<int32_t>(t.size(1)) : 1;
  STD_TORCH_CHECK(t.size(last - 1) * t.size(last) < int64_t{1} << 31, "relevance must have fewer than 2^31 cells an image");
  view.height = static_cast<int32_t>(t.size(last - 1)), view.width = static_cast<int32_t>(t.size(last));
  view.data = t.const_data_ptr();
  view.row = t.stride(0), view.channel = has_channels ? t.stride(1) : 0;
  view.line = t.stride(last - 1), view.column = t.stride(last);
  view.is_flat = (view.width <= 1 || view.column == 1) && (view.height <= 1 || view.line == view.width);
  STD_TORCH_CHECK(view.count == 0 || images.size(2) * images.size(3) == 0 || t.numel() > 0, "relevance must have a cell");
  if (index) {
    STD_TORCH_CHECK(index->scalar_type() == ScalarType::Long && index->numel() == view.count,
                    "index must be int64, one for each row of relevance");
    view.has_index = true;  // no row at all may leave the pointer null
    view.index = index->const_data_ptr<int64_t>(), view.index_stride = index->stride(0);
  } else {
    STD_TORCH_CHECK(view.count == images.size(0), "relevance must have one row for each image");
  }
  return view;
}

}  // namespace attrdrop
