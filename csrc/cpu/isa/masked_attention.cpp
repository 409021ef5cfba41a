// The row-wise half of masked attention: softmax over the set bits with ordinary dropout, and its backward.
// The matrix products stay with the BLAS behind torch.bmm.
#include "cpu/isa/bernoulli.h"
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"
#include "bits.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

static const float NEG_INF = -__builtin_inff();

static inline uint32_t keep_word(const SoftmaxProblem& p, int64_t row, int64_t word) {
  return columns_below(word, p.n_k) & (p.keep ? p.keep[row * p.keep_row_stride + word] : 0xFFFFFFFFu);
}

// All ones in the lanes whose bit is set; bits start at `first`.
static inline vint lane_mask(uint32_t word, int first) {
  vuint lane;
  for (int i = 0; i < LANES; ++i) lane[i] = first + i;
  return ((broadcast(word) >> lane) & 1u) != 0u;
}

// Loads and stores that stop at the end of a row.
static inline vfloat load_row(const float* row, int64_t j, int64_t n) {
  if (j + LANES <= n) return load<vfloat>(row + j);
  vfloat v = {};
  if (j < n) memcpy(&v, row + j, sizeof(float) * (n - j));
  return v;
}
static inline void store_row(float* row, int64_t j, int64_t n, vfloat v) {
  if (j + LANES <= n) {
    store(row + j, v);
  } else if (j < n) {
    memcpy(row + j, &v, sizeof(float) * (n - j));
  }
}

static inline vfloat load_bias(const SoftmaxProblem& p, int64_t row, int64_t j) {
  if (!p.bias) return vfloat{};
  const float* bias = p.bias + row * p.bias_row_stride;
  if (p.bias_column_stride == 1) return load_row(bias, j, p.n_k);
  vfloat v = {};
  for (int i = 0; i < LANES && j + i < p.n_k; ++i) v[i] = bias[(j + i) * p.bias_column_stride];
  return v;
}

static inline float dropout_scale(const Draw& draw) {
  return draw.threshold > 0xFFFFu ? 0.0f : 65536.0f / static_cast<float>(65536u - draw.threshold);
}

void softmax(const SoftmaxProblem& p, int64_t begin, int64_t end, uint32_t* dropped) {
  const int64_t words = word_count(p.n_k);
  const bool has_dropout = p.draw.threshold != 0;
  if (has_dropout) bernoulli_words(p.draw, begin, end, words, dropped);
  for (int64_t row = begin; row < end; ++row) {
    float* scores = p.scores + row * p.n_k;
    vfloat lane_max = broadcast(NEG_INF);
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t keep = keep_word(p, row, w);
      for (int64_t j = 32 * w; j < 32 * w + 32 && j < p.n_k; j += LANES) {
        const vfloat z = fmadd(load_row(scores, j, p.n_k), broadcast(p.scale), load_bias(p, row, j));
        const vfloat kept = lane_mask(keep, j % 32) ? z : broadcast(NEG_INF);
        lane_max = kept > lane_max ? kept : lane_max;
        store_row(scores, j, p.n_k, kept);
      }
    }
    float max = NEG_INF;
    for (int i = 0; i < LANES; ++i) max = lane_max[i] > max ? lane_max[i] : max;
    vfloat lane_sum = {};
    for (int64_t j = 0; j < p.n_k; j += LANES) {
      const vfloat z = load_row(scores, j, p.n_k);
      vfloat e = z == NEG_INF ? vfloat{} : exponential(z - max);
      if (j + LANES > p.n_k)  // lanes past the row hold zeros, not scores
        for (int64_t i = p.n_k - j; i < LANES; ++i) e[i] = 0.0f;
      lane_sum += e;
      store_row(scores, j, p.n_k, e);
    }
    const float sum = horizontal_sum(lane_sum);
    p.lse[row] = sum == 0.0f ? NEG_INF : max + __builtin_logf(sum);
    const float normalise = sum == 0.0f ? 0.0f : (has_dropout ? dropout_scale(p.draw) : 1.0f) / sum;
    for (int64_t j = 0; j < p.n_k; j += LANES) {
      vfloat probability = load_row(scores, j, p.n_k) * normalise;
      if (has_dropout) probability = lane_mask(dropped[(row - begin) * words + j / 32], j % 32) ? vfloat{} : probability;
      store_row(scores, j, p.n_k, probability);
    }
  }
}

void softmax_backward(const SoftmaxBackwardProblem& b, int64_t begin, int64_t end, uint32_t* dropped) {
  const SoftmaxProblem& p = b.forward;
  const int64_t words = word_count(p.n_k);
  const bool has_dropout = p.draw.threshold != 0;
  const float scale_up = has_dropout ? dropout_scale(p.draw) : 1.0f;
  if (has_dropout) bernoulli_words(p.draw, begin, end, words, dropped);
  for (int64_t row = begin; row < end; ++row) {
    float *scores = p.scores + row * p.n_k, *grad = b.grad + row * p.n_k;
    const float lse = p.lse[row], delta = b.delta[row];
    const bool is_empty = lse == NEG_INF;
    for (int64_t j = 0; j < p.n_k; j += LANES) {
      const vint kept = lane_mask(is_empty ? 0u : keep_word(p, row, j / 32), j % 32);
      const vfloat z = fmadd(load_row(scores, j, p.n_k), broadcast(p.scale), load_bias(p, row, j));
      const vfloat probability = kept ? exponential(z - lse) : vfloat{};
      vfloat multiplier = broadcast(scale_up);
      if (has_dropout) multiplier = lane_mask(dropped[(row - begin) * words + j / 32], j % 32) ? vfloat{} : multiplier;
      const vfloat upstream = load_row(grad, j, p.n_k) * multiplier;
      const vfloat grad_z = kept ? probability * (upstream - delta) : vfloat{};
      store_row(scores, j, p.n_k, probability * multiplier);
      store_row(grad, j, p.n_k, grad_z * p.scale);
      if (b.grad_bias) store_row(b.grad_bias + row * p.n_k, j, p.n_k, grad_z);
    }
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
