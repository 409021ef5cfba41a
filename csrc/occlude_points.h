// RelDrop on point clouds: which points are dropped and what they become, for CPU and CUDA.
#pragma once
#include "occlusion.h"
#include "points.h"

namespace attrdrop {

enum class Norm : int { minmax, rank, positive };
enum class Replacement : int { number, first, resample };

struct PointRule {
  double alpha, beta;  // alpha is 1 where there is no relevance
  bool calibrated;     // round(beta n) points are dropped; else those whose score reaches 1 - beta
  Norm norm;
  uint64_t seed;
};

struct PointProblem {
  PointView points;     // (N, P, C), written
  PointView relevance;  // (N, P, c), summed over c; data null: there is none
  ValidView valid;
  PointRule rule;
  Replacement replacement;
  Constant constant;
  SampleIds sample_ids;
  int64_t count;
  uint32_t size;                        // P
  int32_t channels, relevance_channels;  // C, c
  bool* dropped;                        // (N, P)
};

// r = max(x - base, 0) / span, where x is the relevance, or how many are smaller.
struct Scale {
  double base, span;
};

// Of relevance from low to high (low > high: there is none), or of n valid points by rank.
ATTRDROP_HD Scale relevance_scale(Norm norm, float low, float high, int64_t n) {
  const double base = norm == Norm::minmax ? low : 0.0;
  const double end = norm == Norm::rank ? static_cast<double>(n - 1) : high;
  return {base, end > base ? end - base : static_cast<double>(INFINITY)};
}

ATTRDROP_HD double normalised(const Scale& scale, double x) {
  const double above = x - scale.base;
  return (above < 0 ? 0.0 : above) / scale.span;  // NaN stays
}

ATTRDROP_HD double point_score(double alpha, uint32_t word, double r) {
  return add_product(alpha * uniform(word), 1 - alpha, r);
}

// Score from which on points are dropped.
ATTRDROP_HD double score_bound(double beta) { return beta > 0 ? 1 - beta : static_cast<double>(INFINITY); }

// How many of n valid points are dropped: beta n, a half rounded up.
ATTRDROP_HD int64_t dropped_count(double beta, int64_t n) {
  return static_cast<int64_t>(floor(add_product(0.5, beta, static_cast<double>(n))));
}

// What calibrated points are ranked by: bits of a score from 0 to 1 as float32, below 2^30.
ATTRDROP_HD int32_t score_bits(double score) {
  const float narrow = static_cast<float>(score);
  int32_t bits;
  memcpy(&bits, &narrow, sizeof bits);
  return bits;
}

// Words of points 4 call to 4 call + 3 of a cloud.
ATTRDROP_HD Philox4 point_words(uint64_t seed, uint32_t purpose, uint32_t sample, uint32_t call) {
  return philox4x32_10(seed, {{call, purpose, 0, sample}});
}

}  // namespace attrdrop
