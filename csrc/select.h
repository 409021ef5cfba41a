// The ranking rule of AD-DROP (Eq. 6), shared by every backend.
#pragma once
#include <cstdint>
#include <cstring>

#include "philox.h"

namespace attrdrop {

enum class Region : int { high = 0, low = 1 };

constexpr int32_t KEY_NAN = INT32_MAX;  // NaN and masked columns rank last, as in torch.sort

// 0-based rank of the threshold among n valid columns. The product is taken in float32, as published.
ATTRDROP_HD int32_t threshold_rank(int32_t n, float share_below) {
  return static_cast<int32_t>(static_cast<float>(n) * share_below);
}

// Share of a row below the threshold: 1 - p for the high region, p for the low one.
ATTRDROP_HD float share_below(double p, Region region) {
  return static_cast<float>(region == Region::high ? 1.0 - p : p);
}

// Integer that orders as the float does; -0 equals +0.
ATTRDROP_HD int32_t ordered_key(float value) {
  if (value != value) return KEY_NAN;
  value += 0.0f;
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

// The float of an ordered key that is not KEY_NAN.
ATTRDROP_HD float ordered_value(int32_t key) {
  key ^= (key >> 31) & 0x7FFFFFFF;
  float value;
  memcpy(&value, &key, sizeof value);
  return value;
}

// What a row's comparison with its threshold means for the candidate region.
struct RowRule {
  bool all;   // every valid column is a candidate
  bool none;  // no column is
};

// not_nan counts the valid columns that are not NaN; rank is threshold_rank(n, share).
ATTRDROP_HD RowRule row_rule(Region region, int32_t rank, int32_t n, int32_t not_nan) {
  if (region == Region::high) {
    if (rank >= n) return {false, true};
    return {rank >= not_nan, false};  // the threshold is NaN: nothing is below it
  }
  if (rank <= 0) return {false, true};
  return {rank >= n || rank >= not_nan, false};
}

}  // namespace attrdrop
