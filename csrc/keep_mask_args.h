// The arguments of keep_mask, random_keep_mask and keep_scores, for the CPU, the CUDA side and the emulator alike.
#pragma once
#include "array_view.h"
#include "select.h"

namespace attrdrop {

// A (B, H, n, d) tensor with unit stride in d; strides count elements.
struct Operand {
  const void* data;
  int64_t batch, head, row;
};

// (B, H, n_q, n_k) with strides, 0 where broadcast; data null: none.
struct Bias {
  const void* data;
  int64_t batch, head, row, column;
  Dtype dtype;
};

struct KeepMaskArgs {
  Operand x, y;                // (B, H, n_q, d), (B, H_kv, n_k, d)
  Operand weight_q, weight_k;  // (B, H, n_q, e), (B, H_kv, n_k, e)
  const float* weight_lse;     // (B, H, n_q); null: x y^T is not weighted
  Bias bias;                   // of the scores: weight_q weight_k^T where there is a weight, else x y^T; with d = 0 alone
  float scale;                 // of the same, before the bias is added
  const uint32_t* valid;       // null: all columns; else packed bits with strides, 0 where broadcast
  int64_t valid_batch, valid_head, valid_row;
  const int64_t* sample_ids;  // null: the index in the batch
  int64_t sample_stride;
  uint32_t* rows;              // (B, H, n_q, words(n_k))
  uint32_t* cols;              // (B, H, n_k, words(n_q)); null: not wanted
  unsigned long long* counts;  // (4): valid, candidates, dropped, rescued rows
  uint64_t seed;
  uint32_t first_head, threshold;  // number of head 0 among those of all layers
  int32_t batch, heads, groups;  // groups: query heads that share a head of y
  int32_t n_q, n_k, d, d_weight;
  Dtype dtype;  // of the operands
  Region region;
  float share;                            // of a row's columns that lies below the threshold
  float normal_quantile, normal_spacing;  // CUDA: of the threshold, see NormalThreshold
  int32_t guesses;                        // CUDA: steps by guesses, before the bracket is halved
  Bernoulli bernoulli;                    // CUDA: of seed and threshold
  bool is_causal, bf16_keys;
  bool is_ranked;   // else there is nothing to rank, and all columns tie
  bool is_aligned;  // operands can be read 16 bytes at a time
};

inline bool is_empty(const KeepMaskArgs& args) { return int64_t{args.batch} * args.heads * args.n_q * args.n_k == 0; }

// Rows [row, row + rows) of one (sample, head) are one block's.
struct BlockPlace {
  int32_t sample, head, kv_head, row;
  int64_t slice;  // sample * heads + head
};

inline Operand operand(KeepMaskArgs& args, const ArrayView& a, const char* name) {
  require(a.dim == 4, name, " must have 4 dimensions, got ", a.dim);
  require(float_type(a.kind, name) == args.dtype, name, " must have the type of x");
  require(a.size[3] <= 1 || a.stride[3] == 1, name, " must have unit stride in its last dimension");
  int64_t offsets = static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.data));
  for (int dim = 0; dim < 3; ++dim) offsets |= a.item() * a.step(dim);
  args.is_aligned &= offsets % 16 == 0;
  return {a.data, a.stride[0], a.stride[1], a.stride[2]};
}

// Heads of attention are 65536 layer + 0, 1, ...; no model has as many as this one, which is that of given scores.
constexpr uint32_t SCORES_HEAD = 65535;

// What all operators have in common.
inline KeepMaskArgs draw_args(int64_t batch, int64_t heads, int64_t n_q, int64_t n_k, double rate, int64_t seed,
                              int64_t layer, const OptionalView& valid, bool is_causal,
                              const OptionalView& sample_ids) {
  for (const int64_t size : {batch, heads, n_q, n_k})
    require(size >= 0 && size < int64_t{1} << 31, "the mask must have sizes below 2^31, got ", size);
  KeepMaskArgs args{};
  args.batch = static_cast<int32_t>(batch), args.heads = static_cast<int32_t>(heads), args.groups = 1;
  args.n_q = static_cast<int32_t>(n_q), args.n_k = static_cast<int32_t>(n_k);
  args.seed = static_cast<uint64_t>(seed), args.threshold = drop_threshold(rate);
  args.first_head = 65536u * static_cast<uint32_t>(layer);
  args.is_causal = is_causal, args.is_aligned = true;
  if (valid) {
    require(valid->dim == 4 && valid->kind == Kind::i32 && (valid->size[3] <= 1 || valid->stride[3] == 1),
                   "valid must be packed int32 words (B, H, n_q, words) with unit stride in the last dimension");
    args.valid = static_cast<const uint32_t*>(valid->data);
    args.valid_batch = valid->step(0), args.valid_head = valid->step(1), args.valid_row = valid->step(2);
  }
  if (sample_ids) {
    require(sample_ids->dim == 1 && sample_ids->kind == Kind::i64, "sample_ids must be int64 (B,)");
    args.sample_ids = static_cast<const int64_t*>(sample_ids->data), args.sample_stride = sample_ids->stride[0];
  }
  return args;
}

inline Bias bias_of(const ArrayView& a, const KeepMaskArgs& args) {
  require(a.dim == 4, "bias must have 4 dimensions, got ", a.dim);
  const int64_t sizes[] = {args.batch, args.heads, args.n_q, args.n_k};
  for (int dim = 0; dim < 4; ++dim)
    require(a.size[dim] == 1 || a.size[dim] == sizes[dim], "bias must have 1 or ", sizes[dim], " as size ", dim,
                   ", got ", a.size[dim]);
  return {a.data, a.step(0), a.step(1), a.step(2), a.step(3), float_type(a.kind, "bias")};
}

// RUN(x, args, launch...) with the arguments of the operator keep_mask.
template <class Array, auto RUN, class... Launch>
auto keep_mask_op(Array x, Array y, double p, double q, int64_t seed, int64_t layer, std::optional<Array> valid,
                  bool is_causal, bool low, bool bf16_keys, std::optional<Array> sample_ids,
                  std::optional<Array> weight_q, std::optional<Array> weight_k, std::optional<Array> weight_lse,
                  double scale, std::optional<Array> bias, Launch... launch) {
  const ArrayView left = view_of(x), right = view_of(y);
  require(left.dim == 4 && right.dim == 4, "x and y must have 4 dimensions, got ", left.dim, " and ", right.dim);
  KeepMaskArgs args = draw_args(left.size[0], left.size[1], left.size[2], right.size[2], q, seed, layer, view_of(valid),
                                is_causal, view_of(sample_ids));
  args.dtype = float_type(left.kind, "x"), args.bf16_keys = bf16_keys;
  args.x = operand(args, left, "x"), args.y = operand(args, right, "y");
  args.d = static_cast<int32_t>(left.size[3]);
  args.groups = right.size[1] > 0 ? static_cast<int32_t>(left.size[1] / right.size[1]) : 1;
  if (weight_q && weight_k && weight_lse) {
    args.weight_q = operand(args, view_of(*weight_q), "weight query");
    args.weight_k = operand(args, view_of(*weight_k), "weight key");
    args.weight_lse = static_cast<const float*>(view_of(*weight_lse).data);
    args.d_weight = static_cast<int32_t>(view_of(*weight_q).size[3]);
  }
  args.scale = static_cast<float>(scale);
  if (bias) args.bias = bias_of(view_of(*bias), args);
  args.region = low ? Region::low : Region::high;
  args.share = share_below(p, args.region);
  args.is_ranked = args.d > 0 || (args.bias.data && !args.weight_lse);
  return RUN(x, args, launch...);
}

// RUN(like, args, launch...) with those of random_keep_mask.
template <class Array, auto RUN, class... Launch>
auto random_keep_mask_op(Array like, int64_t batch, int64_t heads, int64_t n_q, int64_t n_k, double rate, int64_t seed,
                         int64_t layer, std::optional<Array> valid, bool is_causal, std::optional<Array> sample_ids,
                         Launch... launch) {
  // Nothing is ranked and no column lies below the threshold: every valid one is a candidate.
  return RUN(like, draw_args(batch, heads, n_q, n_k, rate, seed, layer, view_of(valid), is_causal, view_of(sample_ids)),
             launch...);
}

// The same array with a dimension of size 1 behind its first.
inline ArrayView with_head(const ArrayView& a, const char* name) {
  check_dim(a, 3, name);
  return {a.data, a.kind, 4, {a.size[0], 1, a.size[1], a.size[2]}, {a.stride[0], 0, a.stride[1], a.stride[2]}};
}

// RUN(scores, args, launch...) with those of keep_scores: the rows of one head, ranked as a bias without a product.
template <class Array, auto RUN, class... Launch>
auto keep_scores_op(Array scores, double p, double q, int64_t seed, int64_t layer, std::optional<Array> valid, bool low,
                    std::optional<Array> sample_ids, Launch... launch) {
  const ArrayView given = with_head(view_of(scores), "scores");
  const OptionalView allowed = valid ? OptionalView(with_head(view_of(*valid), "valid")) : std::nullopt;
  KeepMaskArgs args =
      draw_args(given.size[0], 1, given.size[2], given.size[3], q, seed, layer, allowed, false, view_of(sample_ids));
  args.first_head += SCORES_HEAD;
  args.bias = bias_of(given, args), args.scale = 1.0f;
  args.bf16_keys = args.bias.dtype == Dtype::bf16;  // which rounds nothing
  args.region = low ? Region::low : Region::high;
  args.share = share_below(p, args.region);
  args.is_ranked = true;
  return RUN(scores, args, launch...);
}

}  // namespace attrdrop
