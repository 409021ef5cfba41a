// Arguments of occlude_blocks_ and fill_blocks_ as the kernels want them: for the CPU, for CUDA and for the emulator.
#pragma once
#include <vector>

#include "occlude_blocks.h"
#include "occlusion_args.h"

namespace attrdrop {

inline ImageView image_view(const ArrayView& t) {
  return {const_cast<void*>(t.data), t.stride[0], t.stride[1], t.stride[2], t.stride[3]};
}

inline BlockFill block_fill(const ArrayView& images, bool keep, double value, const OptionalView& values, bool is_random,
                            const OptionalView& source, const OptionalView& source_index, int64_t seed,
                            const OptionalView& sample_ids) {
  check_dim(images, 4, "images");
  require(images.size[2] * images.size[3] < int64_t{1} << 31, "images must have fewer than 2^31 pixels each");
  BlockFill fill{};
  fill.images = image_view(images), fill.type = element_type(images, "images");
  if (source) {
    check_dim(*source, 4, "source");
    require(source->kind == images.kind, "source must have the type of images");
    for (int dim = 1; dim < 4; ++dim) require(source->size[dim] == images.size[dim], "source must have the shape of images");
    fill.sources = source->size[0];
    require(fill.sources >= (source_index ? images.size[0] > 0 : images.size[0]), "source has too few images");
    fill.source = image_view(*source);
    if (source_index) {
      require(source_index->kind == Kind::i64 && source_index->numel() == images.size[0],
              "source_index must be int64, one for each image");
      fill.source_index = source_index->as<int64_t>();
      fill.source_index_stride = source_index->stride[0];
    }
  }
  fill.constant = constant_of(value, values, images, images.size[1], "images");
  fill.is_random = is_random, fill.keep = keep;
  fill.seed = static_cast<uint64_t>(seed);
  fill.sample_ids = sample_ids_of(sample_ids, images.size[0]);
  fill.count = images.size[0];
  fill.channels = static_cast<int32_t>(images.size[1]);
  fill.height = static_cast<int32_t>(images.size[2]), fill.width = static_cast<int32_t>(images.size[3]);
  return fill;
}

inline BlockRule block_rule(double p, const std::vector<double>& scale, const std::vector<double>& log_ratio, double alpha,
                            int64_t k_centers, bool shift, bool per_batch, int64_t seed) {
  require(scale.size() == 2 && log_ratio.size() == 2, "scale and ratio must be pairs");
  require(k_centers >= 1, "k_centers must be positive");
  return {p, alpha, {scale[0], scale[1]}, {log_ratio[0], log_ratio[1]}, k_centers, shift, per_batch,
          static_cast<uint64_t>(seed)};
}

inline RelevanceView relevance_view(const OptionalView& relevance, const OptionalView& index, const ArrayView& images) {
  RelevanceView view{};
  if (!relevance) {
    require(!index, "index needs relevance");
    return view;
  }
  const ArrayView& t = *relevance;
  require(t.dim == 3 || t.dim == 4, "relevance must have 3 or 4 dimensions, got ", t.dim);
  const bool has_channels = t.dim == 4;
  const int last = has_channels ? 3 : 2;
  view.type = relevance_type(t);
  view.count = t.size[0];
  view.channels = has_channels ? static_cast<int32_t>(t.size[1]) : 1;
  require(t.size[last - 1] * t.size[last] < int64_t{1} << 31, "relevance must have fewer than 2^31 cells an image");
  view.height = static_cast<int32_t>(t.size[last - 1]), view.width = static_cast<int32_t>(t.size[last]);
  view.data = t.data;
  view.row = t.stride[0], view.channel = has_channels ? t.stride[1] : 0;
  view.line = t.stride[last - 1], view.column = t.stride[last];
  view.is_flat = (view.width <= 1 || view.column == 1) && (view.height <= 1 || view.line == view.width);
  require(view.count == 0 || images.size[2] * images.size[3] == 0 || t.numel() > 0, "relevance must have a cell");
  if (index) {
    require(index->kind == Kind::i64 && index->numel() == view.count, "index must be int64, one for each row of relevance");
    view.has_index = true;  // no row at all may leave the pointer null
    view.index = index->as<int64_t>(), view.index_stride = index->stride[0];
  } else {
    require(view.count == images.size[0], "relevance must have one row for each image");
  }
  return view;
}

// RUN(images, problem, launch...) with the arguments of the operator occlude_blocks_.
template <class Array, auto RUN, class... Launch>
auto occlude_blocks_op(Array images, std::optional<Array> relevance, std::optional<Array> index, double p,
                       std::vector<double> scale, std::vector<double> log_ratio, double alpha, int64_t k_centers, bool shift,
                       bool per_batch, bool keep, double value, std::optional<Array> values, bool is_random,
                       std::optional<Array> source, std::optional<Array> source_index, int64_t seed,
                       std::optional<Array> sample_ids, Launch... launch) {
  const ArrayView view = view_of(images);
  const BlockProblem problem{block_fill(view, keep, value, view_of(values), is_random, view_of(source),
                                        view_of(source_index), seed, view_of(sample_ids)),
                             block_rule(p, scale, log_ratio, alpha, k_centers, shift, per_batch, seed),
                             relevance_view(view_of(relevance), view_of(index), view), nullptr};
  return RUN(images, problem, launch...);
}

// RUN(images, fill, boxes, launch...) with those of fill_blocks_.
template <class Array, auto RUN, class... Launch>
void fill_blocks_op(Array images, Array boxes, bool keep, double value, std::optional<Array> values, bool is_random,
                    std::optional<Array> source, std::optional<Array> source_index, int64_t seed,
                    std::optional<Array> sample_ids, Launch... launch) {
  const BlockFill fill = block_fill(view_of(images), keep, value, view_of(values), is_random, view_of(source),
                                    view_of(source_index), seed, view_of(sample_ids));
  const ArrayView box = view_of(boxes);
  require(box.kind == Kind::i32 && box.is_contiguous() && box.numel() == 4 * fill.count,
          "boxes must be contiguous int32, four for each image");
  RUN(images, fill, box.as<int32_t>(), launch...);
}

}  // namespace attrdrop
