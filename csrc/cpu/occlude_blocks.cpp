// occlude_blocks_, fill_blocks_, draw_images on the CPU: images are shared out to threads; only the blocks are written.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <vector>

#include "block_args.h"
#include "ops.h"

namespace attrdrop {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t CHUNK = 1024;  // cells that are summed and searched while they are in the nearest cache
constexpr int LANES = 16;

// Scores of one row of relevance, CHUNK cells at a time.
class Scores {
 public:
  Scores(const RelevanceView& map, int64_t row) : map_(map), row_(row) {}

  int64_t cells() const { return int64_t{map_.height} * map_.width; }

  // Cells [begin, begin + count): where they stand already, or summed into `room`.
  const float* read(int64_t begin, int64_t count, float* room) const {
    switch (map_.type) {
      case Element::f32: return read_as<float>(begin, count, room);
      case Element::bf16: return read_as<BFloat16>(begin, count, room);
      default: return read_as<Half>(begin, count, room);
    }
  }

 private:
  template <class T>
  const float* read_as(int64_t begin, int64_t count, float* room) const {
    const T* data = static_cast<const T*>(map_.data) + row_ * map_.row;
    if constexpr (std::is_same_v<T, float>)
      if (map_.is_flat && map_.channels == 1) return data + begin;
    std::fill_n(room, count, -0.0f);  // -0 + x is x, whatever x is
    for (int64_t c = 0; c < map_.channels; ++c) {
      const T* channel = data + c * map_.channel;
      if (map_.is_flat) {
        for (int64_t i = 0; i < count; ++i) room[i] += static_cast<float>(channel[begin + i]);
      } else {
        int64_t line = begin / map_.width, column = begin % map_.width;
        for (int64_t i = 0; i < count; ++i) {
          room[i] += static_cast<float>(channel[line * map_.line + column * map_.column]);
          if (++column == map_.width) column = 0, ++line;
        }
      }
    }
    return room;
  }

  const RelevanceView& map_;
  int64_t row_;
};

struct Peak {
  float value;
  bool has_nan;
};

typedef float FourFloats __attribute__((vector_size(16)));  // every processor of 64 bits has such registers
typedef int32_t FourBools __attribute__((vector_size(16)));

// The largest of some scores, in lanes that do not wait for each other.
static Peak peak_of(const float* score, int64_t count) {
  constexpr int vectors = LANES / 4;
  FourFloats best[vectors];
  FourBools nan[vectors] = {};
  for (FourFloats& lanes : best) lanes = FourFloats{} - INFINITY;
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int j = 0; j < vectors; ++j) {
      FourFloats v;
      std::memcpy(&v, score + i + 4 * j, sizeof v);
      const FourBools larger = v > best[j];
      best[j] = (FourFloats)(((FourBools)v & larger) | ((FourBools)best[j] & ~larger));
      nan[j] |= v != v;
    }
  float lanes[LANES];
  int32_t nans[LANES];
  std::memcpy(lanes, best, sizeof lanes);
  std::memcpy(nans, nan, sizeof nans);
  for (; i < count; ++i) {
    lanes[0] = score[i] > lanes[0] ? score[i] : lanes[0];
    nans[0] |= score[i] != score[i];
  }
  return {*std::max_element(lanes, lanes + LANES), std::any_of(nans, nans + LANES, [](int32_t x) { return x != 0; })};
}

// First cell of the largest score.
static int64_t first_peak(const Scores& scores, bool& has_nan) {
  float room[CHUNK], best = -INFINITY;
  int64_t at = 0;
  const int64_t cells = scores.cells();
  for (int64_t begin = 0; begin < cells; begin += CHUNK) {
    const int64_t count = std::min(CHUNK, cells - begin);
    const float* score = scores.read(begin, count, room);
    const Peak peak = peak_of(score, count);
    has_nan |= peak.has_nan;
    if (peak.value > best) {
      best = peak.value;
      at = begin + (std::find(score, score + count, best) - score);
    }
  }
  return at;
}

// The cell with `rank` cells before it, in the order of (score descending, index ascending).
static int64_t ranked_cell(const Scores& scores, int64_t rank, bool& has_nan) {
  float room[CHUNK];
  std::vector<uint64_t> keys(scores.cells());  // ascending in that order
  for (int64_t begin = 0; begin < scores.cells(); begin += CHUNK) {
    const int64_t count = std::min(CHUNK, scores.cells() - begin);
    const float* score = scores.read(begin, count, room);
    for (int64_t i = 0; i < count; ++i) {
      has_nan |= score[i] != score[i];
      keys[begin + i] = static_cast<uint64_t>(~score_key(score[i])) << 32 | static_cast<uint32_t>(begin + i);
    }
  }
  std::nth_element(keys.begin(), keys.begin() + rank, keys.end());
  return static_cast<uint32_t>(keys[rank]);
}

// Row m of the relevance of image n, or -1 where the image has none.
static std::vector<int64_t> rows_of_images(const RelevanceView& map, int64_t count) {
  std::vector<int64_t> row(count, map.has_index ? -1 : 0);
  if (!map.has_index) std::iota(row.begin(), row.end(), 0);
  for (int64_t m = 0; map.has_index && m < map.count; ++m) {
    const int64_t image = map.index[m * map.index_stride];
    STD_TORCH_CHECK(image >= 0 && image < count, "index must lie in [0, ", count, "), got ", image);
    row[image] = m;
  }
  return row;
}

static Box choose_box(const BlockRule& rule, const RelevanceView& map, int64_t row, uint32_t sample, int32_t height,
                      int32_t width, bool& has_nan) {
  const Philox4 words = block_words(rule.seed, sample);
  const int64_t pixels = int64_t{height} * width;
  int32_t y = 0, x = 0;
  if (pixels > 0) y = below(words.word[3], pixels) / width, x = below(words.word[3], pixels) % width;
  if (map.data && row >= 0 && pixels > 0) {  // also where nothing is guided: a NaN is an error all the same
    const Scores scores(map, row);
    const int64_t rank = below(words.word[2], std::min(rule.k_centers, scores.cells()));
    const int64_t cell = rank == 0 ? first_peak(scores, has_nan) : ranked_cell(scores, rank, has_nan);
    if (is_guided(rule.alpha, words)) {
      y = cell_centre(cell / map.width, map.height, height);
      x = cell_centre(cell % map.width, map.width, width);
    }
  }
  if (!is_drawn(rule.p, rule.seed, rule.per_batch, sample)) return {};
  for (int attempt = 0; attempt < BLOCK_ATTEMPTS; ++attempt) {
    const Box size = attempt_block(rule, sample, attempt, height, width);
    if (size.height > 0) return place_block(rule, size, y, x, height, width);
  }
  return {};
}

// Random elements of one image in order: four at a time.
template <class T>
class RandomElements {
 public:
  RandomElements(uint64_t seed, uint32_t sample) : seed_(seed), sample_(sample) {}

  T at(int64_t element) {
    if (element / 4 != call_) draw(element / 4);
    return four_[element % 4];
  }

 private:
  void draw(int64_t call) {
    call_ = call;
    const Philox4 r = element_words(seed_, sample_, call);
    if constexpr (std::is_same_v<T, uint8_t>) {
      for (int i = 0; i < 4; ++i) four_[i] = static_cast<T>(r.word[i] >> 24);
    } else {
      for (int i = 0; i < 4; i += 2) {
        const float radius = normal_radius(r.word[i]), angle = 3.14159265f * normal_turn(r.word[i + 1]);
        four_[i] = static_cast<T>(radius * std::cos(angle));
        four_[i + 1] = static_cast<T>(radius * std::sin(angle));
      }
    }
  }

  uint64_t seed_;
  uint32_t sample_;
  int64_t call_ = -1;
  T four_[4];
};

// Calls run(row, first column, end) for the pixels that are replaced: the block, or all others.
template <class Run>
static void for_replaced(Box box, bool keep, int32_t height, int32_t width, Run run) {
  const int32_t bottom = box.top + box.height, right = box.left + box.width;
  for (int32_t y = keep ? 0 : box.top; y < (keep ? height : bottom); ++y) {
    if (!keep) {
      run(y, box.left, right);
    } else if (y < box.top || y >= bottom) {
      run(y, 0, width);
    } else {
      if (box.left > 0) run(y, 0, box.left);
      if (right < width) run(y, right, width);
    }
  }
}

template <class T>
static T* at(const ImageView& view, int64_t image, int64_t channel, int64_t row, int64_t column) {
  return static_cast<T*>(view.data) + image * view.image + channel * view.channel + row * view.row + column * view.column;
}

// Line by line: copied, filled, or (channels innermost) a line of repeated pixels written as one.
template <class T>
static void fill_image(const BlockFill& fill, int64_t image, Box box) {
  const int32_t channels = fill.channels;
  const int64_t from = fill.source.data ? source_image(fill, image) : 0;
  const bool is_inner = is_channels_last(fill.images, channels) &&
                        (!fill.source.data || is_channels_last(fill.source, channels));
  if (is_inner && !fill.is_random) {
    std::vector<T> pixels;  // a line of the image in the replacing values
    if (!fill.source.data) {
      pixels.resize(int64_t{fill.keep ? fill.width : box.width} * channels);
      for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = constant_at<T>(fill.constant, static_cast<int64_t>(i) % channels);
    }
    for_replaced(box, fill.keep, fill.height, fill.width, [&](int32_t y, int32_t begin, int32_t end) {
      const T* line = fill.source.data ? at<T>(fill.source, from, 0, y, begin) : pixels.data();
      std::memcpy(at<T>(fill.images, image, 0, y, begin), line, sizeof(T) * (end - begin) * channels);
    });
    return;
  }
  RandomElements<T> random(fill.seed, sample_of(fill.sample_ids, image));
  for (int64_t c = 0; c < channels; ++c) {
    const T constant = constant_at<T>(fill.constant, c);
    for_replaced(box, fill.keep, fill.height, fill.width, [&](int32_t y, int32_t begin, int32_t end) {
      T* out = at<T>(fill.images, image, c, y, begin);
      const int64_t step = fill.images.column, count = end - begin;
      if (fill.source.data) {
        const T* in = at<T>(fill.source, from, c, y, begin);
        if (step == 1 && fill.source.column == 1) std::memcpy(out, in, sizeof(T) * count);
        else for (int64_t i = 0; i < count; ++i) out[i * step] = in[i * fill.source.column];
      } else if (fill.is_random) {
        const int64_t element = (c * fill.height + y) * fill.width + begin;
        for (int64_t i = 0; i < count; ++i) out[i * step] = random.at(element + i);
      } else if (step == 1) {
        std::fill_n(out, count, constant);
      } else {
        for (int64_t i = 0; i < count; ++i) out[i * step] = constant;
      }
    });
  }
}

static void fill_image(Element type, const BlockFill& fill, int64_t image, Box box) {
  if (box.height <= 0 || box.width <= 0) return;
  switch (type) {
    case Element::u8: return fill_image<uint8_t>(fill, image, box);
    case Element::f16: return fill_image<Half>(fill, image, box);
    case Element::bf16: return fill_image<BFloat16>(fill, image, box);
    case Element::f32: return fill_image<float>(fill, image, box);
  }
}

// Elements of an image, of which a good part is written.
static int64_t fill_elements(const BlockFill& fill) { return int64_t{fill.channels} * fill.height * fill.width; }

static void check_source_index(const BlockFill& fill) {
  for (int64_t n = 0; fill.source_index && n < fill.count; ++n) {
    const int64_t from = fill.source_index[n * fill.source_index_stride];
    STD_TORCH_CHECK(from >= 0 && from < fill.sources, "source_index must lie in [0, ", fill.sources, "), got ", from);
  }
}

// images (N, C, H, W); relevance (M, h, w) or (M, c, h, w); gives the boxes (N, 4).
Tensor occlude_blocks_cpu(Tensor images, std::optional<Tensor> relevance, std::optional<Tensor> index, double p,
                          std::vector<double> scale, std::vector<double> log_ratio, double alpha, int64_t k_centers,
                          bool shift, bool per_batch, bool keep, double value, std::optional<Tensor> values,
                          bool is_random, std::optional<Tensor> source, std::optional<Tensor> source_index, int64_t seed,
                          std::optional<Tensor> sample_ids) {
  const BlockFill fill = block_fill(images, keep, value, values, is_random, source, source_index, seed, sample_ids);
  const BlockRule rule = block_rule(p, scale, log_ratio, alpha, k_centers, shift, per_batch, seed);
  const RelevanceView map = relevance_view(relevance, index, images);
  check_source_index(fill);
  const std::vector<int64_t> rows = rows_of_images(map, fill.count);
  Tensor boxes = new_int32(images, {fill.count, 4});
  auto* box = static_cast<int32_t*>(boxes.mutable_data_ptr());
  const Element type = element_type(images, "images");
  std::atomic<bool> any_nan{false};
  const int64_t cells = int64_t{map.channels} * map.height * map.width, elements = fill_elements(fill);
  torch::stable::parallel_for(0, fill.count, grain(64 + cells), [&](int64_t begin, int64_t end) {
    bool has_nan = false;
    for (int64_t n = begin; n < end; ++n) {
      const Box found = choose_box(rule, map, rows[n], sample_of(fill.sample_ids, n), fill.height, fill.width, has_nan);
      std::memcpy(box + 4 * n, &found, sizeof found);
    }
    if (has_nan) any_nan = true;
  });
  check_data(!any_nan, "relevance must not have NaN in it");  // before a pixel is written
  torch::stable::parallel_for(0, fill.count, grain(elements), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int32_t* b = box + 4 * n;
      fill_image(type, fill, n, {b[0], b[1], b[2], b[3]});
    }
  });
  return boxes;
}

void fill_blocks_cpu(Tensor images, Tensor boxes, bool keep, double value, std::optional<Tensor> values, bool is_random,
                     std::optional<Tensor> source, std::optional<Tensor> source_index, int64_t seed,
                     std::optional<Tensor> sample_ids) {
  const BlockFill fill = block_fill(images, keep, value, values, is_random, source, source_index, seed, sample_ids);
  check_source_index(fill);
  check_boxes(boxes, fill.count);
  const auto* box = static_cast<const int32_t*>(boxes.const_data_ptr());
  const int64_t elements = fill_elements(fill);
  const Element type = element_type(images, "images");
  torch::stable::parallel_for(0, fill.count, grain(elements), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) fill_image(type, fill, n, clip_box(box + 4 * n, fill.height, fill.width));
  });
}

// sample_ids (N) -> bool (N)
Tensor draw_images_cpu(Tensor sample_ids, double p, double alpha, int64_t seed, bool per_batch) {
  check_dim(sample_ids, 1, "sample_ids");
  STD_TORCH_CHECK(sample_ids.scalar_type() == ScalarType::Long, "sample_ids must be int64");
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
