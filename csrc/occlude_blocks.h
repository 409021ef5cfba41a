// RelDrop on images: which are occluded and by which block, for CPU and CUDA.
#pragma once
#include "occlusion.h"

namespace attrdrop {

constexpr int BLOCK_ATTEMPTS = 10;

// A (N, C, H, W) tensor; strides count elements.
struct ImageView {
  void* data;  // null: there is none
  int64_t image, channel, row, column;
};

// Rows of the block: [top, top + height), columns likewise; a height of 0: the image is left alone.
struct Box {
  int32_t top, left, height, width;
};

struct BlockRule {
  double p, alpha;
  double scale[2];      // share of the area, smallest and largest
  double log_ratio[2];  // logarithm of height / width, likewise
  int64_t k_centers;
  bool shift;      // a block over the border is moved inside, not cut
  bool per_batch;  // all images are drawn or none
  uint64_t seed;
};

// (M, h, w) or (M, c, h, w), summed over the channels; strides count elements.
struct RelevanceView {
  const void* data;  // null: centres are uniform
  int64_t row, channel, line, column;
  int64_t count;
  int32_t channels, height, width;
  Element type;
  bool is_flat;          // cells of a channel follow one another
  bool has_index;        // else row m belongs to image m
  const int64_t* index;  // (M)
  int64_t index_stride;
};

// What stands where pixels are replaced.
struct BlockFill {
  ImageView images, source;     // of the same type; source.data null: not used
  Element type;
  const int64_t* source_index;  // (N); null: the image's own number
  int64_t source_index_stride, sources;
  Constant constant;            // where there is no source
  bool is_random;               // standard normal numbers, or bytes, instead
  bool keep;                    // everything but the block is replaced
  uint64_t seed;
  SampleIds sample_ids;
  int64_t count;
  int32_t channels, height, width;
};

struct BlockProblem {
  BlockFill fill;
  BlockRule rule;
  RelevanceView relevance;
  int32_t* boxes;  // (N, 4)
};

// Where image n takes its pixels from: inside the source, whatever the index says.
ATTRDROP_HD int64_t source_image(const BlockFill& fill, int64_t image) {
  const int64_t from = fill.source_index ? fill.source_index[image * fill.source_index_stride] : image;
  return from < 0 ? 0 : from < fill.sources ? from : fill.sources - 1;
}

// Words: drawn or not, guided or not, rank of the centre, uniform centre.
ATTRDROP_HD Philox4 block_words(uint64_t seed, uint32_t sample) {
  return philox4x32_10(seed, {{0, DRAW_BLOCK, 0, sample}});
}

ATTRDROP_HD bool is_drawn(double p, uint64_t seed, bool per_batch, uint32_t sample) {
  const Philox4 words = per_batch ? philox4x32_10(seed, {{0, DRAW_BATCH, 0, 0}}) : block_words(seed, sample);
  return uniform(words.word[0]) < p;
}

// Whether the centre is to be guided by relevance; else it is uniform.
ATTRDROP_HD bool is_guided(double alpha, const Philox4& words) { return !(uniform(words.word[1]) < alpha); }

// One attempt at a block: its size, or a height of 0 where it does not lie strictly inside height x width.
ATTRDROP_HD Box attempt_block(const BlockRule& rule, uint32_t sample, int attempt, int32_t height, int32_t width) {
  const Philox4 r = philox4x32_10(rule.seed, {{1 + static_cast<uint32_t>(attempt) / 2, DRAW_BLOCK, 0, sample}});
  const double u = uniform(attempt % 2 ? r.word[2] : r.word[0]), v = uniform(attempt % 2 ? r.word[3] : r.word[1]);
  const double pixels = static_cast<double>(height) * width;
  const double area = pixels * add_product(rule.scale[0], u, rule.scale[1] - rule.scale[0]);
  // exp differs by a last place between libraries: in float32 the same number is left
  const float rounded = static_cast<float>(exp(add_product(rule.log_ratio[0], v, rule.log_ratio[1] - rule.log_ratio[0])));
  const double aspect = rounded;
  const double h = floor(sqrt(area * aspect) + 0.5), w = floor(sqrt(area / aspect) + 0.5);
  const bool fits = 0 < h && h < height && 0 < w && w < width;
  return {0, 0, fits ? static_cast<int32_t>(h) : 0, fits ? static_cast<int32_t>(w) : 0};
}

// First and last of `size` places around the centre that lie in [0, limit).
ATTRDROP_HD void place_block(int32_t centre, int32_t limit, bool shift, int32_t& start, int32_t& size) {
  int32_t begin = centre - size / 2;
  if (shift) {
    begin = begin < 0 ? 0 : begin < limit - size ? begin : limit - size;
  } else {
    const int32_t end = begin + size < limit ? begin + size : limit;
    begin = begin < 0 ? 0 : begin;
    size = end - begin;
  }
  start = begin;
}

ATTRDROP_HD Box place_block(const BlockRule& rule, Box size, int32_t row, int32_t column, int32_t height, int32_t width) {
  place_block(row, height, rule.shift, size.top, size.height);
  place_block(column, width, rule.shift, size.left, size.width);
  return size;
}

// The pixel in the middle of cell `cell` of `cells` that cover `pixels`.
ATTRDROP_HD int32_t cell_centre(int64_t cell, int64_t cells, int64_t pixels) {
  return static_cast<int32_t>((2 * cell + 1) * pixels / (2 * cells));
}

// A box of the caller's, cut to the image; what is left without a row or column is a height of 0.
ATTRDROP_HD Box clip_box(const int32_t* box, int32_t height, int32_t width) {
  const int64_t top = box[0] < 0 ? 0 : box[0], left = box[1] < 0 ? 0 : box[1];
  const int64_t bottom = static_cast<int64_t>(box[0]) + box[2], right = static_cast<int64_t>(box[1]) + box[3];
  const int64_t rows = (bottom < height ? bottom : height) - top, columns = (right < width ? right : width) - left;
  if (rows <= 0 || columns <= 0) return {0, 0, 0, 0};
  return {static_cast<int32_t>(top), static_cast<int32_t>(left), static_cast<int32_t>(rows), static_cast<int32_t>(columns)};
}

ATTRDROP_HD bool is_channels_last(const ImageView& view, int64_t channels) {
  return channels > 1 && view.channel == 1 && view.column == channels;
}

// Words of the random element e = (c * H + y) * W + x of an image: word e % 4 of call e / 4.
ATTRDROP_HD Philox4 element_words(uint64_t seed, uint32_t sample, int64_t call) {
  return philox4x32_10(seed, {{static_cast<uint32_t>(call), DRAW_ELEMENT, 0, sample}});
}

// Box-Muller: radius and turn (in half circles) of the two normal numbers that two words make.
ATTRDROP_HD float normal_radius(uint32_t word) {
  return sqrtf(-2.0f * logf((static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f));
}
ATTRDROP_HD float normal_turn(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-23f; }

}  // namespace attrdrop
