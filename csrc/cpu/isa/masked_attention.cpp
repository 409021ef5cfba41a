// Softmax attention over the set bits, and its backward: blocks of BLOCK_Q queries against tiles of BLOCK_K keys, so that
// scores live in the cache alone. A tile without a set bit is skipped. Order of sums depends on shapes only.
#include "cpu/isa/bernoulli.h"
#include "cpu/isa/products.h"
#include "cpu/isa/select_rows.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int64_t BLOCK_Q = 48, BLOCK_K = 192, TILE_WORDS = BLOCK_K / 32;
static const float NEG_INF = -__builtin_inff();
constexpr double LOG2_E = 1.4426950408889634;  // exponents are to the base 2

// Of one (sample, key head); panels by PANEL keys (K^T, V^T) or by PANEL features (K, V).
struct AttentionScratch {
  float *k_by_key, *v_by_key, *k, *v;
  float *q_rows, *grad_rows, *q_panels, *grad_panels, *accumulator, *scores, *grad_scores, *bias;
  uint32_t *dropped, *kept;
  float* ranked;  // dO V^T, RANKED_PAD floats between rows so that they do not share a set of the cache
  uint32_t *drawn, *valid;
  RowScratch row;
};

constexpr int64_t RANKED_PAD = 16;

static int64_t carve(const AttentionProblem& p, Walk direction, char* base, AttentionScratch& s) {
  const bool is_backward = direction != Walk::forward, is_ranked = direction == Walk::ranked_backward;
  const int64_t n = padded(p.n_k), d = to_panels(p.d), d_v = to_panels(p.d_v);
  Carver carver{base};
  carver.take(s.k_by_key, n * p.d);
  carver.take(s.v_by_key, is_backward ? n * p.d_v : 0);
  carver.take(s.k, is_backward ? n * d : 0);
  carver.take(s.v, is_backward ? 0 : n * d_v);
  carver.take(s.q_rows, BLOCK_Q * p.d);
  carver.take(s.grad_rows, is_backward ? BLOCK_Q * p.d_v : 0);
  carver.take(s.q_panels, is_backward ? BLOCK_Q * d : 0);
  carver.take(s.grad_panels, is_backward ? BLOCK_Q * d_v : 0);
  carver.take(s.accumulator, BLOCK_Q * (is_backward ? d : d_v));
  carver.take(s.scores, BLOCK_Q * BLOCK_K);
  carver.take(s.grad_scores, is_backward ? BLOCK_Q * BLOCK_K : 0);
  carver.take(s.bias, BLOCK_K);
  carver.take(s.dropped, p.draw.threshold ? BLOCK_Q * word_count(p.n_k) : 0);
  carver.take(s.kept, BLOCK_Q * TILE_WORDS);
  if (is_ranked) {
    carver.take(s.ranked, BLOCK_Q * (n + RANKED_PAD));
    carver.take(s.drawn, BLOCK_Q * word_count(p.n_k));
    carver.take(s.valid, word_count(p.n_k));
    carve(carver, p.n_k, s.row);
  }
  return carver.next - base;
}

int64_t attention_scratch(const AttentionProblem& p, Walk direction) {
  AttentionScratch unused;
  return carve(p, direction, nullptr, unused);
}

int64_t padded_width(int64_t d) { return to_panels(d); }

void pack_keys(const AttentionProblem& p, Walk direction, void* scratch) {
  AttentionScratch s;
  carve(p, direction, static_cast<char*>(scratch), s);
  const int64_t n = padded(p.n_k);
  pack_panels(p.k, p.n_k, p.d, s.k_by_key);
  if (direction != Walk::forward) {
    pack_panels(p.v, p.n_k, p.d_v, s.v_by_key);
    pack_columns(p.k, 0, p.n_k, p.d, n, s.k);
  } else {
    pack_columns(p.v, 0, p.n_k, p.d_v, n, s.v);
  }
}

// Copies `rows` rows of x, from `begin` on, as float32.
static void copy_rows(const Matrix& x, int64_t begin, int64_t rows, int64_t d, float* out) {
  with_type(x, [=](auto* data) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < d; ++k) out[r * d + k] = as_float(data[(begin + r) * x.row_stride + k]);
  });
}

static inline float dropout_scale(const Draw& draw) {
  return draw.threshold > 0xFFFFu ? 0.0f : 65536.0f / static_cast<float>(65536u - draw.threshold);
}

// One tile: queries [row, row + rows) and keys [key, key + keys).
struct Tile {
  int64_t row, rows, key, keys;
  int64_t columns() const { return padded(keys); }
};

// The words of a tile, to s.kept; false where no bit is set.
static bool find_kept(const AttentionProblem& p, const Tile& t, uint32_t* kept) {
  uint32_t any = 0;
  const int64_t words = word_count(t.keys);
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t word = p.keep[(t.row + r) * p.keep_row_stride + t.key / 32 + w] & columns_below(w, t.keys);
      kept[r * TILE_WORDS + w] = word;
      any |= word;
    }
  return any != 0;
}

// The bias of one row of a tile, to the base 2; null where there is none.
static const float* load_bias(const AttentionProblem& p, const Tile& t, int64_t r, float* out) {
  if (!p.bias.data) return nullptr;
  with_type(p.bias, [=, &p, &t](auto* data) {
    const auto* row = data + (t.row + r) * p.bias.row_stride + t.key * p.bias_column_stride;
    for (int64_t j = 0; j < t.keys; ++j) out[j] = as_float(row[j * p.bias_column_stride]) * static_cast<float>(LOG2_E);
    for (int64_t j = t.keys; j < t.columns(); ++j) out[j] = 0.0f;
  });
  return out;
}

// scale (q k^T) + bias, all to the base 2
static inline vfloat logits(vfloat scores, float scale, const float* bias, int64_t j) {
  return bias ? fmadd(scores, broadcast(scale), load<vfloat>(bias + j)) : scores * scale;
}

static inline float binary_scale(const AttentionProblem& p) { return static_cast<float>(p.scale * LOG2_E); }

// Running maximum, to the base 2, and sum of a row.
struct Online {
  float max, sum;
};

// scores -> 2^(z - max) of the set bits, dropped ones 0; what was accumulated is scaled to the new maximum.
template <bool DROPS>
static void soften_row(const AttentionProblem& p, const Tile& t, const uint32_t* kept, const uint32_t* dropped,
                       const float* bias, float* scores, Online& state, float* accumulator, int64_t width) {
  const float scale = binary_scale(p);
  vfloat lane_max = broadcast(NEG_INF);
  for (int64_t w = 0; w < word_count(t.keys); ++w)
    for (int i = 0; i < 32; i += LANES) {
      float* at = scores + 32 * w + i;
      const vfloat z = choose(kept[w], i, logits(load<vfloat>(at), scale, bias, 32 * w + i), broadcast(NEG_INF));
      lane_max = larger(z, lane_max);
      store(at, z);
    }
  float max = state.max;
  for (int i = 0; i < LANES; ++i) max = lane_max[i] > max ? lane_max[i] : max;
  const vfloat shift = broadcast(max == NEG_INF ? 0.0f : max);
  vfloat lane_sum = {};
  for (int64_t w = 0; w < word_count(t.keys); ++w)
    for (int i = 0; i < 32; i += LANES) {
      float* at = scores + 32 * w + i;
      const vfloat e = exponential2(load<vfloat>(at) - shift);
      lane_sum += e;
      store(at, DROPS ? choose(dropped[w], i, vfloat{}, e) : e);
    }
  if (max != state.max) {
    const vfloat factor = exponential2(broadcast(state.max) - shift);
    state.sum *= factor[0];
    for (int64_t j = 0; j < width; j += LANES) store(accumulator + j, load<vfloat>(accumulator + j) * factor);
    state.max = max;
  }
  state.sum += horizontal_sum(lane_sum);
}

template <class T>
static inline T* writable(const T* data) {
  return const_cast<T*>(data);
}

// Writes rows of float32, times a factor each, in the type of `out`.
void write_rows(const Matrix& out, int64_t begin, int64_t rows, int64_t d, const float* from, int64_t step,
                       const float* factors) {
  with_type(out, [=](auto* data) {
    for (int64_t r = 0; r < rows; ++r) {
      auto* row = writable(data) + (begin + r) * out.row_stride;
      const float factor = factors ? factors[r] : 1.0f;
      for (int64_t k = 0; k < d; ++k) put(row + k, from[r * step + k] * factor);
    }
  });
}

void attention(const AttentionProblem& p, int64_t begin, int64_t end, void* scratch) {
  AttentionScratch s;
  carve(p, Walk::forward, static_cast<char*>(scratch), s);
  const int64_t n = padded(p.n_k), d_v = to_panels(p.d_v), words = word_count(p.n_k);
  const auto soften = p.draw.threshold ? soften_row<true> : soften_row<false>;
  for (int64_t row = begin; row < end; row += BLOCK_Q) {
    const int64_t rows = end - row < BLOCK_Q ? end - row : BLOCK_Q;
    Online state[BLOCK_Q];
    for (Online& each : state) each = {NEG_INF, 0.0f};
    memset(s.accumulator, 0, sizeof(float) * rows * d_v);
    copy_rows(p.q, row, rows, p.d, s.q_rows);
    if (p.draw.threshold) bernoulli_words(p.draw, row, row + rows, words, s.dropped);
    for (int64_t key = 0; key < p.n_k; key += BLOCK_K) {
      const Tile t{row, rows, key, p.n_k - key < BLOCK_K ? p.n_k - key : BLOCK_K};
      if (!find_kept(p, t, s.kept)) continue;
      product<false>(s.q_rows, p.d, rows, s.k_by_key + key * p.d, p.d * PANEL, p.d, t.columns(), s.scores, BLOCK_K, false);
      for (int64_t r = 0; r < rows; ++r)
        soften(p, t, s.kept + r * TILE_WORDS, s.dropped + r * words + key / 32, load_bias(p, t, r, s.bias),
               s.scores + r * BLOCK_K, state[r], s.accumulator + r * d_v, d_v);
      product<false>(s.scores, BLOCK_K, rows, s.v + key * PANEL, n * PANEL, t.keys, d_v, s.accumulator, d_v, true);
    }
    float factors[BLOCK_Q];
    for (int64_t r = 0; r < rows; ++r) {
      const float sum = state[r].sum;
      factors[r] = sum == 0.0f ? 0.0f : dropout_scale(p.draw) / sum;
      p.lse[row + r] = sum == 0.0f ? NEG_INF : static_cast<float>(state[r].max / LOG2_E + __builtin_log(sum));
    }
    write_rows(p.out, row, rows, p.d_v, s.accumulator, d_v, factors);
  }
}

// Adds to the row of a bias, or to its one column where that is broadcast.
static inline void add_grad_bias(float* row, int64_t column_stride, int64_t j, int64_t n, vfloat grad) {
  if (column_stride == 0) {
    *row += horizontal_sum(grad);  // 0 past n
  } else if (j + LANES <= n) {
    store(row + j, load<vfloat>(row + j) + grad);
  } else {
    for (int i = 0; j + i < n; ++i) row[j + i] += grad[i];
  }
}

// scores -> dropout(P), and grad_scores = dF/d(q k^T) from dO V^T, of one row; grad_bias gains dF/dz.
template <bool DROPS>
static void walk_row(const AttentionBackwardProblem& b, const Tile& t, const uint32_t* kept, const uint32_t* dropped,
                     const float* bias, float lse, float delta, float* scores, const float* products, float* grad_scores,
                     float* grad_bias) {
  const AttentionProblem& p = b.forward;
  const vfloat scale_up = broadcast(dropout_scale(p.draw));
  const float scale = binary_scale(p), binary_lse = static_cast<float>(lse * LOG2_E);
  for (int64_t w = 0; w < word_count(t.keys); ++w) {
    const uint32_t set = lse == NEG_INF ? 0u : kept[w];
    for (int i = 0; i < 32; i += LANES) {
      const int64_t j = 32 * w + i;
      vfloat upstream = load<vfloat>(products + j);
      const vfloat z = logits(load<vfloat>(scores + j), scale, bias, j);
      const vfloat probability = choose(set, i, exponential2(z - binary_lse), vfloat{});
      vfloat passed = probability;
      if (DROPS) {
        const vfloat multiplier = choose(dropped[w], i, vfloat{}, scale_up);
        upstream *= multiplier;
        passed *= multiplier;
      }
      const vfloat grad_z = probability * (upstream - delta);
      store(scores + j, passed);
      store(grad_scores + j, grad_z * p.scale);
      if (grad_bias) add_grad_bias(grad_bias, b.grad_bias_column_stride, j, t.keys, grad_z);
    }
  }
}

// Sums of x o y over each row; y (rows, d) is contiguous.
static void row_products(const Matrix& x, int64_t begin, int64_t rows, int64_t d, const float* y, float* out) {
  with_type(x, [=](auto* data) {
    for (int64_t r = 0; r < rows; ++r) {
      float sum = 0.0f;
      for (int64_t k = 0; k < d; ++k) sum += as_float(data[(begin + r) * x.row_stride + k]) * y[r * d + k];
      out[r] = sum;
    }
  });
}

// Queries [first, last) of a block hold all that have a gradient: the others add nothing to any sum, unless something is not
// finite, which a product with 0 would show.
struct LiveQueries {
  LiveQueries(const float* grad, const float* delta, const float* lse, int64_t rows, int64_t d) {
    for (int64_t r = 0; r < rows; ++r) {
      bool is_live = delta[r] != 0.0f || lse[r] != lse[r];
      for (int64_t k = 0; k < d && !is_live; ++k) is_live = grad[r * d + k] != 0.0f;
      if (!is_live) continue;
      if (last == 0) first = r;
      last = r + 1;
    }
  }
  int64_t first = 0, last = 0;
};

// The bits of the queries of a block, of which those in `live` have their dO V^T in s.ranked, from its first row on.
static void select_block(const KeepMaskProblem& p, const AttentionScratch& s, int64_t row, int64_t rows, const LiveQueries& live,
                         int64_t d_v, int32_t& guess, Counts& counts) {
  const int64_t words = word_count(p.n_k), stride = 32 * words + RANKED_PAD;
  bernoulli_words(p.draw, row, row + rows, words, s.drawn);
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t n_valid = valid_words(p.valid, row + r, p.n_k, words, s.valid);
    int64_t active_words = words;
    while (active_words > 0 && s.valid[active_words - 1] == 0) --active_words;
    const bool is_zero = all_zero(s.grad_rows + r * d_v, d_v), is_live = r >= live.first && r < live.last;
    float* values = s.ranked + r * stride;
    if (!is_live) memset(values, 0, sizeof(float) * 32 * words);
    select_row(p, s.row, row + r, values, is_zero && p.region == Region::high, s.valid, s.drawn + r * words, active_words,
               n_valid, guess, counts);
  }
}

void attention_backward(const AttentionBackwardProblem& b, int64_t begin, int64_t end, void* scratch, Counts& counts) {
  const AttentionProblem& p = b.forward;
  AttentionScratch s;
  carve(p, b.ranked ? Walk::ranked_backward : Walk::backward, static_cast<char*>(scratch), s);
  const int64_t n = padded(p.n_k), d = to_panels(p.d), d_v = to_panels(p.d_v), words = word_count(p.n_k);
  const auto walk = p.draw.threshold ? walk_row<true> : walk_row<false>;
  const auto multiply = b.ranked ? product<false, true> : product<false>;  // ranks are those of keep_mask, to the bit
  const int64_t ranked_stride = b.ranked ? n + RANKED_PAD : BLOCK_K;
  int32_t guess = 0;
  for (int64_t block = begin; block < end; block += BLOCK_Q) {
    const int64_t block_rows = end - block < BLOCK_Q ? end - block : BLOCK_Q;
    memset(s.accumulator, 0, sizeof(float) * block_rows * d);
    copy_rows(b.grad_out, block, block_rows, p.d_v, s.grad_rows);
    float deltas[BLOCK_Q];
    row_products(p.out, block, block_rows, p.d_v, s.grad_rows, deltas);
    const LiveQueries live(s.grad_rows, deltas, p.lse + block, block_rows, p.d_v);
    const int64_t row = block + live.first, rows = live.last - live.first;
    const float *grad_rows = s.grad_rows + live.first * p.d_v, *delta = deltas + live.first;
    float* grad_q = s.accumulator + live.first * d;
    if (rows > 0) {
      copy_rows(p.q, row, rows, p.d, s.q_rows);
      pack_columns(p.q, row, rows, p.d, BLOCK_Q, s.q_panels);
      pack_columns(b.grad_out, row, rows, p.d_v, BLOCK_Q, s.grad_panels);
      if (p.draw.threshold) bernoulli_words(p.draw, row, row + rows, words, s.dropped);
    }
    for (int64_t key = 0; key < p.n_k && rows > 0; key += BLOCK_K) {
      const Tile t{row, rows, key, p.n_k - key < BLOCK_K ? p.n_k - key : BLOCK_K};
      if (!find_kept(p, t, s.kept)) continue;
      product<false>(s.q_rows, p.d, rows, s.k_by_key + key * p.d, p.d * PANEL, p.d, t.columns(), s.scores, BLOCK_K, false);
      float* products = b.ranked ? s.ranked + live.first * ranked_stride + key : s.grad_scores;
      multiply(grad_rows, p.d_v, rows, s.v_by_key + key * p.d_v, p.d_v * PANEL, p.d_v, t.columns(), products, ranked_stride,
               false);
      for (int64_t r = 0; r < rows; ++r)
        walk(b, t, s.kept + r * TILE_WORDS, s.dropped + r * words + key / 32, load_bias(p, t, r, s.bias), p.lse[row + r],
             delta[r], s.scores + r * BLOCK_K, products + r * ranked_stride, s.grad_scores + r * BLOCK_K,
             b.grad_bias ? b.grad_bias + (row + r) * b.grad_bias_row_stride + key * b.grad_bias_column_stride : nullptr);
      product<true>(s.scores, BLOCK_K, t.keys, s.grad_panels, BLOCK_Q * PANEL, rows, d_v, b.grad_v + key * d_v, d_v, true);
      product<true>(s.grad_scores, BLOCK_K, t.keys, s.q_panels, BLOCK_Q * PANEL, rows, d, b.grad_k + key * d, d, true);
      product<false>(s.grad_scores, BLOCK_K, rows, s.k + key * PANEL, n * PANEL, t.keys, d, grad_q, d, true);
    }
    write_rows(b.grad_q, block, block_rows, p.d, s.accumulator, d, nullptr);
    if (b.ranked) select_block(*b.ranked, s, block, block_rows, live, p.d_v, guess, counts);
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
