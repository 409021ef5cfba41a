// What the instruction-set variants offer to the operators. Plain pointers and sizes: the variants include no torch
// and no standard templates, so that no inline function compiled for AVX-512 can be linked into the base path.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "select.h"

namespace attrdrop {

// Rows of one (sample, head): elements of `dtype`, unit stride inside a row.
struct Matrix {
  const void* data;
  int64_t row_stride;
  Dtype dtype;
};

// Packed valid columns, broadcast over rows by row_stride 0; data may be null: all columns.
struct ValidBits {
  const uint32_t* data;
  int64_t row_stride;
  bool is_causal;  // column j is valid for row i where j <= i
};

struct Draw {
  uint64_t seed;
  uint32_t head_layer, sample, threshold;
};

struct Counts {
  int64_t valid, candidates, dropped, rescued_rows;
};

// What the positions of one (sample, head) are worth: x (n_q, d), y (n_k, d), optionally weighted by
// exp(scale * q k^T + bias - lse), or that weight alone where y is null; or scale * x y^T + bias, which with d = 0 is the
// bias alone.
struct Positions {
  Matrix x, y;
  Matrix weight_q, weight_k;
  const float* weight_lse;  // (n_q); null: not weighted
  bool is_weight_alone;     // without x y^T
  Matrix bias;              // (n_q, n_k), row stride 0 where it is broadcast; data null: none
  int64_t bias_column_stride;
  float scale;
  int64_t n_q, n_k, d, d_weight;
  ValidBits valid;
};

// One (sample, head) of keep_mask.
struct KeepMaskProblem : Positions {
  Draw draw;
  Region region;
  float share_below;
  bool round_to_bf16;
  uint32_t* rows;  // (n_q, words(n_k))
};

// One (sample, head) of masked attention, in float32 inside.
struct AttentionProblem {
  Matrix q, k, v;        // (n_q, d), (n_k, d), (n_k, d_v)
  const uint32_t* keep;  // packed rows; row stride 0 where they are broadcast
  int64_t keep_row_stride;
  Matrix bias;           // (n_q, n_k), row stride 0 where it is broadcast; data null: none
  int64_t bias_column_stride;
  float scale;
  Draw draw;             // threshold 0: no dropout
  int64_t n_q, n_k, d, d_v;
  Matrix out;            // (n_q, d_v), written by the forward pass, read by the backward
  float* lse;            // (n_q), likewise
};

enum class Walk : int { forward, backward, ranked_backward };

struct AttentionBackwardProblem {
  AttentionProblem forward;
  Matrix grad_out;         // (n_q, d_v)
  Matrix grad_q;           // (n_q, d), written
  float *grad_k, *grad_v;  // added to: (n_k, padded_width(d)), (n_k, padded_width(d_v))
  float* grad_bias;        // null, or added to; strides 0 where the bias is broadcast
  int64_t grad_bias_row_stride, grad_bias_column_stride;
  const KeepMaskProblem* ranked;  // null, or the mask that dO V^T gives; its valid columns are those of `keep`
};

enum class Reduction : int { sum, topk };

// One (sample, head) of attention_attribution: x = grad_out, y = v.
struct AttributionProblem : Positions {
  Reduction reduction;
  float* values;      // sum: (n_k); topk: (k), descending, padded with -inf
  int64_t* indices;   // topk: (k), row * n_k + column, padded with -1
  int64_t k;
};

// Scale and shift of the element at each offset: entry offset / inner % count, in the type computed in (float, or double
// for double). inner is 1, or long enough that a run of equal entries pays.
struct Channels {
  const void *scale, *shift;
  int64_t count, inner;
};

// relevance_gate over dense elements: y = max(scale z + shift, least).
struct GateProblem {
  const void* z;
  void* y;
  Dtype dtype;
  Channels channels;
  double least;  // 0, or -inf for none
};

// Its backward: out = scale grad y / (s + eps sign(s)), 0 where y is 0. surrogate s may be y itself.
struct GateBackwardProblem {
  const void *grad, *y, *surrogate;
  void* out;
  Dtype dtype;
  Channels channels;  // shift is not read
  double eps;
};

// pack_mask of rows of n bytes; strides count bytes.
struct PackProblem {
  const uint8_t* mask;
  int64_t row_stride, column_stride, n;
  uint32_t* bits;  // (rows, words(n))
};

struct TransposeProblem {
  const uint32_t* rows;  // (heads, n_q, words(n_k))
  int64_t head_stride, row_stride, n_q, n_k;
  uint32_t* cols;  // (heads, n_k, words(n_q))
};

// Points in float32, x NaN where there is none: padding, and what fills the size up to a multiple of CLOUD_BLOCK.
constexpr int64_t CLOUD_BLOCK = 64;
struct Cloud {
  const float *x, *y, *z;
  int64_t size;
};

// farthest_point_sample of one cloud.
struct SampleProblem {
  Cloud cloud;
  int64_t first, n;
  float* nearest;  // (size) scratch: squared distance to the points chosen
  int64_t* out;    // (n)
};

// ball_query of one centre, at several scales at once.
struct QueryProblem {
  Cloud cloud;
  float x, y, z;
  const float* radius2;  // (scales)
  const int64_t* k;      // (scales)
  int64_t scales;
  int64_t* found;        // (scales) scratch
  int64_t* out;          // (sum of k), one scale after the other
};

// See occlude_blocks.h, occlude_points.h and points.h.
struct BlockProblem;
struct BlockFill;
struct Box;
struct PointProblem;
struct GroupProblem;
struct ScatterProblem;

struct Kernels {
  const char* isa;
  int64_t (*keep_mask_scratch)(const KeepMaskProblem&);
  // Rows [begin, end), begin a multiple of 32; scratch is 64-byte aligned.
  void (*keep_mask)(const KeepMaskProblem&, int64_t begin, int64_t end, void* scratch, Counts&);
  // Bernoulli words of rows [begin, end), `words` a row, to out.
  void (*bernoulli)(const Draw&, int64_t begin, int64_t end, int64_t words, uint32_t* out);
  // Heads that share k and v share what pack_keys makes of them in the scratch memory of one walk.
  int64_t (*attention_scratch)(const AttentionProblem&, Walk);
  void (*pack_keys)(const AttentionProblem&, Walk, void* scratch);
  void (*attention)(const AttentionProblem&, int64_t begin, int64_t end, void* scratch);  // queries [begin, end)
  // begin is a multiple of 32 where dO V^T is ranked.
  void (*attention_backward)(const AttentionBackwardProblem&, int64_t begin, int64_t end, void* scratch, Counts&);
  int64_t (*padded_width)(int64_t d);
  // Rows [begin, begin + rows) of `out` from float32 rows `step` apart, times a factor each where there are any.
  void (*write_rows)(const Matrix& out, int64_t begin, int64_t rows, int64_t d, const float* from, int64_t step,
                     const float* factors);
  int64_t (*attribution_scratch)(const AttributionProblem&);
  void (*attribution)(const AttributionProblem&, void* scratch);
  void (*gate)(const GateProblem&, int64_t begin, int64_t end);  // elements [begin, end)
  void (*gate_backward)(const GateBackwardProblem&, int64_t begin, int64_t end);
  void (*pack_words)(const PackProblem&, int64_t begin, int64_t end);              // words [begin, end) of all rows
  void (*transpose_groups)(const TransposeProblem&, int64_t begin, int64_t end);  // 32 rows each, of all heads
  void (*farthest_points)(const SampleProblem&);
  void (*ball_query)(const QueryProblem&);
  int64_t (*points_scratch)(const PointProblem&);
  // Which points of a cloud are dropped; false where the relevance of a valid one is not finite.
  bool (*choose_points)(const PointProblem&, int64_t cloud, void* scratch);
  void (*replace_points)(const PointProblem&, int64_t cloud, uint32_t* scratch);  // (2 P)
  // Centres [begin, end) of all clouds, and channels [first, first + width) of one, with room for sums (P, width). They give
  // an index that is out of range, whose row is left out, or null.
  const int64_t* (*gather_rows)(const GroupProblem&, int64_t begin, int64_t end);
  const int64_t* (*add_rows)(const ScatterProblem&, int64_t cloud, int64_t first, int64_t width, float* sums);
  int64_t (*block_scratch)(const BlockProblem&);
  // The block of an image with a row of relevance, or -1; false where there is a NaN in it.
  bool (*choose_block)(const BlockProblem&, int64_t image, int64_t row, void* scratch);
  void (*fill_block)(const BlockFill&, int64_t image, const Box&);
};

// The best variant this processor runs, or the one named by ATTRDROP_ISA (base, avx2, avx512).
const Kernels& kernels();
const char* available_isas();

}  // namespace attrdrop
