// occlude_blocks_, fill_blocks_, draw_images on the CPU: images are shared out to threads; only the blocks are written.
#include "occlude_blocks_args.h"

#include <atomic>
#include <numeric>

#include "checks.h"
#include "ops.h"

namespace attrdrop {

// Row m of the relevance of image n, or -1 where the image has none.
static std::vector<int64_t> rows_of_images(const RelevanceView& map, int64_t count) {
  std::vector<int64_t> row(count, map.has_index ? -1 : 0);
  if (!map.has_index) std::iota(row.begin(), row.end(), 0);
  for (int64_t m = 0; map.has_index && m < map.count; ++m) {
    const int64_t image = map.index[m * map.index_stride];
    require(image >= 0 && image < count, "index must lie in [0, ", count, "), got ", image);
    row[image] = m;
  }
  return row;
}

static void check_source_index(const BlockFill& fill) {
  for (int64_t n = 0; fill.source_index && n < fill.count; ++n) {
    const int64_t from = fill.source_index[n * fill.source_index_stride];
    require(from >= 0 && from < fill.sources, "source_index must lie in [0, ", fill.sources, "), got ", from);
  }
}

static void fill_images(const BlockFill& fill, const int32_t* boxes) {
  const int64_t elements = int64_t{fill.channels} * fill.height * fill.width;  // of which a good part is written
  torch::stable::parallel_for(0, fill.count, grain(elements), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) kernels().fill_block(fill, n, clip_box(boxes + 4 * n, fill.height, fill.width));
  });
}

// Gives the boxes (N, 4).
Tensor occlude_blocks_cpu(Tensor images, BlockProblem p) {
  check_source_index(p.fill);
  const RelevanceView& map = p.relevance;
  const std::vector<int64_t> rows = rows_of_images(map, p.fill.count);
  Tensor boxes = new_int32(images, {p.fill.count, 4});
  p.boxes = static_cast<int32_t*>(boxes.mutable_data_ptr());
  std::atomic<bool> any_nan{false};
  const int64_t cells = int64_t{map.channels} * map.height * map.width;
  torch::stable::parallel_for(0, p.fill.count, grain(64 + cells), [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(kernels().block_scratch(p));
    for (int64_t n = begin; n < end; ++n)
      if (!kernels().choose_block(p, n, rows[n], scratch.get())) any_nan = true;
  });
  check_data(!any_nan, "relevance must not have NaN in it");  // before a pixel is written
  fill_images(p.fill, p.boxes);
  return boxes;
}

void fill_blocks_cpu(Tensor, BlockFill fill, const int32_t* boxes) {
  check_source_index(fill);
  fill_images(fill, boxes);
}

// sample_ids (N) -> bool (N). A draw or two an image: no work for a variant.
Tensor draw_images_cpu(Tensor sample_ids, double p, double alpha, int64_t seed, bool per_batch) {
  check_dim(sample_ids, 1, "sample_ids");
  require(sample_ids.scalar_type() == ScalarType::Long, "sample_ids must be int64");
  Tensor drawn = torch::stable::new_empty(sample_ids, {sample_ids.size(0)}, ScalarType::Bool);
  const int64_t* ids = sample_ids.const_data_ptr<int64_t>();
  auto* out = static_cast<bool*>(drawn.mutable_data_ptr());
  const auto key = static_cast<uint64_t>(seed);
  for (int64_t n = 0; n < sample_ids.size(0); ++n) {
    const auto sample = static_cast<uint32_t>(ids[n * sample_ids.stride(0)]);
    out[n] = is_drawn(p, key, per_batch, sample) && is_guided(alpha, block_words(key, sample));
  }
  return drawn;
}

}  // namespace attrdrop
