// occlude_blocks of one image: the search for the centre of its block, and the pixels that are replaced.
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"
#include "occlude_blocks.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int64_t CHUNK = 1024;  // cells that are summed and searched while they are in the nearest cache
constexpr int CHAINS = 4;        // maxima that do not wait for each other

static int64_t cell_count(const RelevanceView& map) { return int64_t{map.height} * map.width; }

template <class T>
static void sum_channels(const RelevanceView& map, int64_t row, int64_t begin, int64_t count, float* sum) {
  const T* data = static_cast<const T*>(map.data) + row * map.row;
  for (int64_t i = 0; i < count; ++i) sum[i] = -0.0f;  // -0 + x is x, whatever x is
  for (int64_t c = 0; c < map.channels; ++c) {
    const T* channel = data + c * map.channel;
    if (map.is_flat) {
      for (int64_t i = 0; i < count; ++i) sum[i] += as_float(channel[begin + i]);
    } else {
      int64_t line = begin / map.width, column = begin % map.width;
      for (int64_t i = 0; i < count; ++i) {
        sum[i] += as_float(channel[line * map.line + column * map.column]);
        if (++column == map.width) column = 0, ++line;
      }
    }
  }
}

// Scores of cells [begin, begin + count) of a row: where they stand already, or summed into `room`.
static const float* read_scores(const RelevanceView& map, int64_t row, int64_t begin, int64_t count, float* room) {
  if (map.type == Element::f32 && map.is_flat && map.channels == 1)
    return static_cast<const float*>(map.data) + row * map.row + begin;
  if (map.type == Element::f32) sum_channels<float>(map, row, begin, count, room);
  else if (map.type == Element::bf16) sum_channels<BFloat16>(map, row, begin, count, room);
  else sum_channels<Float16>(map, row, begin, count, room);
  return room;
}

struct Peak {
  vfloat best = broadcast(-INFINITY);
  vint has_nan = {};
  void see(vfloat score) {
    best = score > best ? score : best;
    has_nan |= score != score;
  }
};

// The largest of some scores; adds to has_nan whether one is NaN.
static float peak_of(const float* score, int64_t count, bool& has_nan) {
  Peak peaks[CHAINS];
  int64_t i = 0;
  for (; i + CHAINS * LANES <= count; i += CHAINS * LANES)
    for (int c = 0; c < CHAINS; ++c) peaks[c].see(load<vfloat>(score + i + c * LANES));
  for (; i + LANES <= count; i += LANES) peaks[0].see(load<vfloat>(score + i));
  vfloat rest = broadcast(-INFINITY);
  for (int lane = 0; i < count; ++i, ++lane) rest[lane] = score[i];
  peaks[1].see(rest);
  float best = -INFINITY;
  for (const Peak& peak : peaks)
    for (int lane = 0; lane < LANES; ++lane) {
      best = peak.best[lane] > best ? peak.best[lane] : best;
      has_nan |= peak.has_nan[lane] != 0;
    }
  return best;
}

// The first place of the largest score.
static int64_t place_of(float best, const float* score, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    if (const uint32_t bits = at_most_bits(broadcast(best), load<vfloat>(score + i))) return i + __builtin_ctz(bits);
  while (score[i] != best) ++i;
  return i;
}

// First cell of the largest score.
static int64_t first_peak(const RelevanceView& map, int64_t row, bool& has_nan) {
  float room[CHUNK], best = -INFINITY;
  int64_t at = 0;
  const int64_t cells = cell_count(map);
  for (int64_t begin = 0; begin < cells; begin += CHUNK) {
    const int64_t count = cells - begin < CHUNK ? cells - begin : CHUNK;
    const float* score = read_scores(map, row, begin, count, room);
    const float peak = peak_of(score, count, has_nan);
    if (peak > best) best = peak, at = begin + place_of(peak, score, count);
  }
  return at;
}

static int64_t count_above(const int32_t* keys, int64_t n, int32_t bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] > bound;
  return count;
}

// The cell with `rank` cells before it, in the order of (score descending, index ascending).
static int64_t ranked_cell(const RelevanceView& map, int64_t row, int64_t rank, int32_t* keys, bool& has_nan) {
  float room[CHUNK];
  const int64_t cells = cell_count(map);
  for (int64_t begin = 0; begin < cells; begin += CHUNK) {
    const int64_t count = cells - begin < CHUNK ? cells - begin : CHUNK;
    const float* score = read_scores(map, row, begin, count, room);
    for (int64_t i = 0; i < count; ++i) {
      has_nan |= score[i] != score[i];
      keys[begin + i] = ordered_key(score[i]);  // the order of NaN does not matter: it is an error
    }
  }
  uint32_t found = 0;  // bits of the key, the sign turned round: the largest that more than `rank` keys reach
  for (uint32_t bit = 1u << 31; bit; bit >>= 1)
    if (count_above(keys, cells, static_cast<int32_t>(((found | bit) - 1) ^ 0x80000000u)) > rank) found |= bit;
  const auto key = static_cast<int32_t>(found ^ 0x80000000u);
  int64_t ties = rank - count_above(keys, cells, key), at = 0;
  while (keys[at] != key || ties-- > 0) ++at;
  return at;
}

int64_t block_scratch(const BlockProblem& p) {
  return p.rule.k_centers > 1 ? cell_count(p.relevance) * static_cast<int64_t>(sizeof(int32_t)) : 0;
}

bool choose_block(const BlockProblem& p, int64_t image, int64_t row, void* scratch) {
  const RelevanceView& map = p.relevance;
  const int32_t height = p.fill.height, width = p.fill.width;
  const uint32_t sample = sample_of(p.fill.sample_ids, image);
  const Philox4 words = block_words(p.rule.seed, sample);
  const int64_t pixels = int64_t{height} * width;
  bool has_nan = false;
  int32_t y = 0, x = 0;
  if (pixels > 0) y = below(words.word[3], pixels) / width, x = below(words.word[3], pixels) % width;
  if (map.data && row >= 0 && pixels > 0) {  // also where nothing is guided: a NaN is an error all the same
    const int64_t cells = cell_count(map), rank = below(words.word[2], p.rule.k_centers < cells ? p.rule.k_centers : cells);
    const int64_t cell = rank == 0 ? first_peak(map, row, has_nan)
                                   : ranked_cell(map, row, rank, static_cast<int32_t*>(scratch), has_nan);
    if (is_guided(p.rule.alpha, words)) {
      y = cell_centre(cell / map.width, map.height, height);
      x = cell_centre(cell % map.width, map.width, width);
    }
  }
  Box box{};
  if (is_drawn(p.rule.p, p.rule.seed, p.rule.per_batch, sample))
    for (int attempt = 0; attempt < BLOCK_ATTEMPTS && box.height == 0; ++attempt) {
      const Box size = attempt_block(p.rule, sample, attempt, height, width);
      if (size.height > 0) box = place_block(p.rule, size, y, x, height, width);
    }
  memcpy(p.boxes + 4 * image, &box, sizeof box);
  return !has_nan;
}

// Writes random elements [element, element + count) of an image: four from each call.
template <class T>
static void fill_random(const BlockFill& fill, uint32_t sample, int64_t element, int64_t count, T* out, int64_t step) {
  const Element type = fill.type;
  const uint64_t seed = fill.seed;
  for (int64_t i = 0; i < count;) {
    const Philox4 r = element_words(seed, sample, (element + i) / 4);
    T four[4];
    if (type == Element::u8) {
      for (int j = 0; j < 4; ++j) four[j] = static_cast<T>(r.word[j] >> 24);
    } else {
      for (int j = 0; j < 4; j += 2) {
        const float radius = normal_radius(r.word[j]), angle = 3.14159265f * normal_turn(r.word[j + 1]);
        four[j] = static_cast<T>(value_bits(radius * cosf(angle), type));
        four[j + 1] = static_cast<T>(value_bits(radius * sinf(angle), type));
      }
    }
    for (int64_t j = (element + i) % 4; j < 4 && i < count; ++i, ++j) out[i * step] = four[j];
  }
}

// By value: a byte may alias anything, and what stands behind a reference would be read again for each.
template <class T>
static void fill_constant(T constant, int64_t count, T* out, int64_t step) {
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) out[i] = constant;
  else
    for (int64_t i = 0; i < count; ++i) out[i * step] = constant;
}

template <class T>
static void copy_line(const T* in, int64_t in_step, int64_t count, T* out, int64_t step) {
  if (step == 1 && in_step == 1) memcpy(out, in, sizeof(T) * count);
  else for (int64_t i = 0; i < count; ++i) out[i * step] = in[i * in_step];
}

// Calls run(row, first column, end) for the pixels that are replaced: the block, or all others.
template <class Run>
static void for_replaced(const Box& box, bool keep, int32_t height, int32_t width, Run run) {
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

// Channels innermost: lines are copied from the source, or from the longest line of the constants that is written already.
template <class T>
static void fill_inner(const BlockFill& fill, int64_t image, int64_t from, const Box& box) {
  const int32_t channels = fill.channels;
  const T* written = nullptr;
  int64_t most = 0;
  for_replaced(box, fill.keep, fill.height, fill.width, [&](int32_t y, int32_t begin, int32_t end) {
    T* out = at<T>(fill.images, image, 0, y, begin);
    const int64_t count = int64_t{end - begin} * channels;
    const T* in = fill.source.data ? at<T>(fill.source, from, 0, y, begin) : count <= most ? written : nullptr;
    if (in) {
      memcpy(out, in, sizeof(T) * count);
      return;
    }
    for (int64_t i = 0; i < count; ++i) out[i] = constant_at<T>(fill.constant, i % channels);
    written = out, most = count;
  });
}

// Line by line of each channel. T has the size of an element.
template <class T>
static void fill_image(const BlockFill& fill, int64_t image, const Box& box) {
  const int32_t channels = fill.channels;
  const int64_t from = fill.source.data ? source_image(fill, image) : 0;
  const bool is_inner = is_channels_last(fill.images, channels) &&
                        (!fill.source.data || is_channels_last(fill.source, channels));
  if (is_inner && !fill.is_random) return fill_inner<T>(fill, image, from, box);
  const uint32_t sample = sample_of(fill.sample_ids, image);
  const int64_t step = fill.images.column;
  for (int64_t c = 0; c < channels; ++c)
    for_replaced(box, fill.keep, fill.height, fill.width, [&](int32_t y, int32_t begin, int32_t end) {
      T* out = at<T>(fill.images, image, c, y, begin);
      const int64_t count = end - begin;
      if (fill.source.data) copy_line(at<T>(fill.source, from, c, y, begin), fill.source.column, count, out, step);
      else if (fill.is_random) fill_random(fill, sample, (c * fill.height + y) * fill.width + begin, count, out, step);
      else fill_constant(constant_at<T>(fill.constant, c), count, out, step);
    });
}

void fill_block(const BlockFill& fill, int64_t image, const Box& box) {
  if (box.height <= 0 || box.width <= 0) return;
  if (fill.type == Element::u8) fill_image<uint8_t>(fill, image, box);
  else if (fill.type == Element::f32) fill_image<uint32_t>(fill, image, box);
  else fill_image<uint16_t>(fill, image, box);
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
