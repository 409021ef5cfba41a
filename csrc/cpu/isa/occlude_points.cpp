// Which points of one cloud are dropped: relevance, draws, scores, and the bound or the rank that decides; and what they
// become.
#include "cpu/isa/philox_lanes.h"
#include "cpu/isa/scratch.h"
#include "cpu/kernels.h"
#include "occlude_points.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

struct PointScratch {
  float* relevance;         // NaN where there is no valid point
  double* smaller;          // how many have less relevance; NaN likewise
  uint64_t *items, *moved;  // keys above places
  uint32_t* words;
  int32_t* keys;
};

// A multiple of what one vector of Philox calls gives, in every instruction set.
static int64_t padded_points(int64_t size) { return (size + CLOUD_BLOCK - 1) / CLOUD_BLOCK * CLOUD_BLOCK; }

static int64_t carve(const PointProblem& p, char* base, PointScratch& s) {
  const int64_t n = padded_points(p.size), ranked = p.rule.norm == Norm::rank ? n : 0;
  Carver carver{base};
  carver.take(s.relevance, n);
  carver.take(s.smaller, ranked);
  carver.take(s.items, ranked);
  carver.take(s.moved, ranked);
  carver.take(s.words, n);
  carver.take(s.keys, p.rule.calibrated ? n : 0);
  return carver.next - base;
}

int64_t points_scratch(const PointProblem& p) {
  PointScratch unused;
  return carve(p, nullptr, unused);
}

template <class T>
static void sum_channels(const PointProblem& p, int64_t cloud, float* sum) {
  const PointView& map = p.relevance;
  const int64_t size = p.size;
  const T* data = static_cast<const T*>(map.data) + cloud * map.cloud;
  for (int64_t j = 0; j < size; ++j) sum[j] = as_float(data[j * map.point]);
  for (int64_t c = 1; c < p.relevance_channels; ++c)
    for (int64_t j = 0; j < size; ++j) sum[j] += as_float(data[j * map.point + c * map.channel]);
}

// Relevance of the valid points, NaN in all other places; gives how many are valid.
static int64_t read_relevance(const PointProblem& p, int64_t cloud, float* out) {
  const int64_t size = p.size;
  if (!p.relevance.data) memset(out, 0, sizeof(float) * size);
  else if (p.relevance.type == Dtype::f32) sum_channels<float>(p, cloud, out);
  else if (p.relevance.type == Dtype::bf16) sum_channels<BFloat16>(p, cloud, out);
  else sum_channels<Float16>(p, cloud, out);
  for (int64_t j = size; j < padded_points(size); ++j) out[j] = NAN;
  if (!p.valid.data) return size;
  int64_t count = 0;
  for (int64_t j = 0; j < size; ++j) {
    const bool counts = is_valid(p.valid, cloud, j);
    out[j] = counts ? out[j] : NAN;
    count += counts;
  }
  return count;
}

struct Range {
  float low, high;
  int64_t count;  // of what is not NaN
};

static Range range_of(const float* x, int64_t padded) {
  vfloat low = broadcast(INFINITY), high = broadcast(-INFINITY);
  vint count = {};
  for (int64_t j = 0; j < padded; j += LANES) {
    const vfloat v = load<vfloat>(x + j);
    low = v < low ? v : low;
    high = v > high ? v : high;
    count -= v == v;
  }
  Range range{low[0], high[0], count[0]};
  for (int lane = 1; lane < LANES; ++lane) {
    range.low = low[lane] < range.low ? low[lane] : range.low;
    range.high = high[lane] > range.high ? high[lane] : range.high;
    range.count += count[lane];
  }
  return range;
}

// Items by their upper halves, ascending: a byte at a time, from the last. The result is in one of the two places.
static const uint64_t* sort_items(uint64_t* items, uint64_t* moved, int64_t count) {
  uint32_t counts[4][256] = {};
  for (int64_t i = 0; i < count; ++i)
    for (int digit = 0; digit < 4; ++digit) ++counts[digit][items[i] >> (32 + 8 * digit) & 255];
  for (int digit = 0; digit < 4; ++digit) {
    uint32_t* places = counts[digit];
    const auto bin = [=](uint64_t item) { return item >> (32 + 8 * digit) & 255; };
    if (count == 0 || places[bin(items[0])] == count) continue;  // one digit in all
    uint32_t begin = 0;
    for (int i = 0; i < 256; ++i) {
      const uint32_t size = places[i];
      places[i] = begin;
      begin += size;
    }
    for (int64_t i = 0; i < count; ++i) moved[places[bin(items[i])]++] = items[i];
    uint64_t* other = items;
    items = moved;
    moved = other;
  }
  return items;
}

static void count_smaller(int64_t size, const PointScratch& s) {
  int64_t count = 0;
  for (int64_t j = 0; j < padded_points(size); ++j) s.smaller[j] = NAN;
  for (int64_t j = 0; j < size; ++j) {
    s.items[count] = static_cast<uint64_t>(score_key(s.relevance[j])) << 32 | static_cast<uint32_t>(j);
    count += s.relevance[j] == s.relevance[j];
  }
  const uint64_t* sorted = sort_items(s.items, s.moved, count);
  int64_t first = 0;  // of the same key
  for (int64_t i = 0; i < count; ++i) {
    first = sorted[i] >> 32 == sorted[first] >> 32 ? first : i;
    s.smaller[static_cast<uint32_t>(sorted[i])] = static_cast<double>(first);
  }
}

static void draw_points(uint64_t seed, uint32_t sample, int64_t padded, uint32_t* words) {
  vuint place = {};
  for (int lane = 0; lane < LANES; ++lane) place[lane] = static_cast<uint32_t>(lane);
  for (int64_t call = 0; 4 * call < padded; call += LANES) {
    vuint drawn[4] = {place + static_cast<uint32_t>(call), broadcast(DRAW_POINT), vuint{}, broadcast(sample)};
    philox_lanes(seed, drawn);
    uint32_t lanes[4][LANES];
    memcpy(lanes, drawn, sizeof lanes);
    for (int lane = 0; lane < LANES; ++lane)
      for (int word = 0; word < 4; ++word) words[4 * (call + lane) + word] = lanes[word][lane];
  }
}

// x: relevance, or how many are smaller; NaN where there is no point to drop.
template <class Real>
static void drop_above(const PointRule& rule, Scale scale, const Real* x, const uint32_t* words, int64_t size, bool* dropped) {
  const double bound = score_bound(rule.beta);
  for (int64_t j = 0; j < size; ++j) dropped[j] = point_score(rule.alpha, words[j], normalised(scale, x[j])) >= bound;
}

template <class Real>
static void score_points(const PointRule& rule, Scale scale, const Real* x, const uint32_t* words, int64_t padded,
                         int32_t* keys) {
  for (int64_t j = 0; j < padded; ++j) {
    const double score = point_score(rule.alpha, words[j], normalised(scale, x[j]));
    keys[j] = score == score ? score_bits(score) : -1;
  }
}

// The `wanted` largest keys, of equal ones the first.
static void drop_largest(const int32_t* keys, int64_t size, int64_t wanted, bool* dropped) {
  const int64_t padded = padded_points(size);
  int32_t least = 0;  // of the keys that are dropped
  for (int32_t bit = 1 << 29; bit; bit >>= 1)
    if (padded - count_less(keys, padded, least | bit) >= wanted) least |= bit;
  int64_t ties = wanted - (padded - count_less(keys, padded, least + 1));
  for (int64_t j = 0; j < size; ++j) {
    const bool is_tie = keys[j] == least;
    dropped[j] = keys[j] > least || (is_tie && ties > 0);
    ties -= is_tie;
  }
}

bool choose_points(const PointProblem& p, int64_t cloud, void* scratch) {
  PointScratch s;
  carve(p, static_cast<char*>(scratch), s);
  const int64_t size = p.size, padded = padded_points(size), count = read_relevance(p, cloud, s.relevance);
  const Range range = range_of(s.relevance, padded);
  if (range.count != count || range.low == -INFINITY || range.high == INFINITY) return false;
  const PointRule& rule = p.rule;
  const Scale scale = relevance_scale(rule.norm, range.low, range.high, count);
  draw_points(rule.seed, sample_of(p.sample_ids, cloud), padded, s.words);
  bool* dropped = p.dropped + cloud * size;
  if (rule.norm == Norm::rank) count_smaller(size, s);
  if (!rule.calibrated) {
    if (rule.norm == Norm::rank) drop_above(rule, scale, s.smaller, s.words, size, dropped);
    else drop_above(rule, scale, s.relevance, s.words, size, dropped);
    return true;
  }
  if (rule.norm == Norm::rank) score_points(rule, scale, s.smaller, s.words, padded, s.keys);
  else score_points(rule, scale, s.relevance, s.words, padded, s.keys);
  drop_largest(s.keys, size, dropped_count(rule.beta, count), dropped);
  return true;
}

// Writes the dropped points; gone and kept have room for all points. T has the size of a number.
template <class T>
static void replace(const PointProblem& p, int64_t cloud, uint32_t* gone, uint32_t* kept) {
  const bool* dropped = p.dropped + cloud * p.size;
  uint32_t drops = 0, stays = 0;
  for (uint32_t j = 0; j < p.size; ++j) {
    gone[drops] = kept[stays] = j;
    drops += dropped[j];
    stays += !dropped[j] && is_valid(p.valid, cloud, j);
  }
  const PointView& view = p.points;
  T* out = static_cast<T*>(const_cast<void*>(view.data)) + cloud * view.cloud;
  if (p.replacement == Replacement::number) {
    for (uint32_t i = 0; i < drops; ++i)
      for (int32_t c = 0; c < p.channels; ++c)
        out[gone[i] * view.point + c * view.channel] = constant_at<T>(p.constant, c);
    return;
  }
  const uint32_t sample = sample_of(p.sample_ids, cloud);
  Philox4 words{};
  uint32_t drawn = UINT32_MAX;  // the call that words are of
  if (stays == 0) kept = gone;  // the first of all valid points is its own replacement
  for (uint32_t i = 0; i < drops; ++i) {
    if (p.replacement == Replacement::resample && gone[i] / 4 != drawn) {
      drawn = gone[i] / 4;
      words = point_words(p.rule.seed, DRAW_RESAMPLE, sample, drawn);
    }
    const uint32_t from = kept[below(words.word[gone[i] % 4], stays)];
    for (int32_t c = 0; c < p.channels; ++c)
      out[gone[i] * view.point + c * view.channel] = out[from * view.point + c * view.channel];
  }
}

void replace_points(const PointProblem& p, int64_t cloud, uint32_t* scratch) {
  if (p.points.type == Dtype::f32) replace<uint32_t>(p, cloud, scratch, scratch + p.size);
  else replace<uint16_t>(p, cloud, scratch, scratch + p.size);
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
