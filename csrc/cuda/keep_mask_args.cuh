// What the kernels of keep_mask are given.
#pragma once
#include "select.h"

namespace attrdrop {

// A (B, H, n, d) tensor with unit stride in d; strides count elements.
struct Operand {
  const void* data;
  int64_t batch, head, row;
};

struct KeepMaskArgs {
  Operand x, y;                // (B, H, n_q, d), (B, H_kv, n_k, d)
  Operand weight_q, weight_k;  // (B, H, n_q, e), (B, H_kv, n_k, e)
  const float* weight_lse;     // (B, H, n_q)
  float weight_scale;
  const uint32_t* valid;  // null: all columns; else packed bits with strides, 0 where broadcast
  int64_t valid_batch, valid_head, valid_row;
  const int64_t* sample_ids;  // null: the index in the batch
  int64_t sample_stride;
  uint32_t* rows;              // (B, H, n_q, words(n_k))
  uint32_t* cols;              // (B, H, n_k, words(n_q))
  unsigned long long* counts;  // (4): valid, candidates, dropped, rescued rows
  uint64_t seed;
  uint32_t layer, threshold;
  int32_t batch, heads, groups;  // groups: query heads that share a head of y
  int32_t n_q, n_k, d, d_weight;  // d = 0: nothing to rank, all columns tie
  Region region;
  float share;        // of a row's columns that lies below the threshold
  float first_guess;  // where between the ends of a row to look for the threshold first
  int32_t guesses;    // steps by interpolation, before the bracket is halved
  bool is_causal;
  bool is_aligned;  // operands can be read 16 bytes at a time
};

// Rows [row, row + rows) of one (sample, head) are one block's.
struct BlockPlace {
  int32_t sample, head, row;
  int64_t slice;  // sample * heads + head
};

}  // namespace attrdrop
