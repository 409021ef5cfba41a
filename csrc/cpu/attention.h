// masked_attention on the CPU. How the work is split follows from shapes alone, never from the number of threads, wherever
// it decides the order of a sum.
#pragma once
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "cpu/keep_mask_problem.h"

namespace attrdrop {

constexpr int64_t LEAST_PARTS = 16;  // a backward pass splits queries until it has as many parts, or so
constexpr int64_t PART_ROWS = 192;   // a multiple of the kernel's blocks of queries, and of 32

// Queries in as many parts as wanted, of whole PART_ROWS each, or fewer where there are not so many.
struct QueryParts {
  QueryParts(int64_t n_q, int64_t wanted) : n_q(n_q), units((n_q + PART_ROWS - 1) / PART_ROWS), count(std::min(units, wanted)) {}
  int64_t begin(int64_t part) const { return part * units / count * PART_ROWS; }
  int64_t end(int64_t part) const { return std::min(n_q, begin(part + 1)); }
  int64_t n_q, units, count;
};

struct AttentionArguments {
  Tensor q, k, v, keep;
  std::optional<Tensor> bias;
  double scale, dropout_p;
  int64_t seed;
  std::optional<Tensor> sample_ids;
  int64_t batch, heads, kv_heads, groups, n_q, n_k, d, d_v;

  AttentionArguments(Tensor q, Tensor k, Tensor v, Tensor keep, std::optional<Tensor> bias, double scale, double dropout_p,
                     int64_t seed, std::optional<Tensor> sample_ids)
      : q(q), k(k), v(v), keep(keep), bias(bias), scale(scale), dropout_p(dropout_p), seed(seed), sample_ids(sample_ids) {
    check_dim(q, 4, "q"), check_dim(k, 4, "k"), check_dim(v, 4, "v"), check_dim(keep, 4, "keep");
    for (const auto& [x, name] : {std::pair{&q, "q"}, {&k, "k"}, {&v, "v"}}) {
      STD_TORCH_CHECK(x->scalar_type() == q.scalar_type(), name, " must have the dtype of q");
      STD_TORCH_CHECK(x->size(3) <= 1 || x->stride(3) == 1, name, " must have unit stride in its last dimension");
    }
    check_int32(keep, "keep");
    batch = q.size(0), heads = q.size(1), n_q = q.size(2), d = q.size(3);
    kv_heads = k.size(1), n_k = k.size(2), d_v = v.size(3);
    groups = kv_heads > 0 ? heads / kv_heads : 1;
    if (bias && bias->scalar_type() == ScalarType::Double) this->bias = torch::stable::to(*bias, ScalarType::Float);
  }

  // Elements between two entries along a dimension, 0 where it is broadcast.
  static int64_t step(const Tensor& t, int dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

  // out (B, n_q, H, d_v) and lse (B, H, n_q) are contiguous.
  AttentionProblem problem(int64_t b, int64_t h, const Tensor& out, const Tensor& lse) const {
    AttentionProblem p{};
    p.q = head_matrix(q, b, h, "q");
    p.k = head_matrix(k, b, h / groups, "k");
    p.v = head_matrix(v, b, h / groups, "v");
    const ValidBits bits = head_bits(keep, b, h, false);
    p.keep = bits.data, p.keep_row_stride = bits.row_stride;
    if (bias) head_bias(*bias, b, h, p.bias, p.bias_column_stride);
    p.scale = static_cast<float>(scale);
    p.draw = head_draw(seed, 0, h, sample_id(sample_ids, b), dropout_p);
    p.n_q = n_q, p.n_k = n_k, p.d = d, p.d_v = d_v;
    p.out = rows_of(out, b, h);
    p.lse = const_cast<float*>(lse.const_data_ptr<float>()) + (b * heads + h) * n_q;
    return p;
  }

  // The rows of one (sample, head) of a tensor (B, n, H, d).
  static Matrix rows_of(const Tensor& t, int64_t b, int64_t h) {
    const int64_t item = t.scalar_type() == ScalarType::Float ? 4 : 2;
    return {static_cast<const char*>(t.const_data_ptr()) + item * (b * t.stride(0) + h * t.stride(2)), t.stride(1),
            kernel_dtype(t, "q")};
  }
};

// The backward pass: gradients of k and v are summed over the heads that share them, that of the bias over all that it is
// broadcast to, one after the other within a task.
class AttentionBackward {
 public:
  // ranked: null, or the mask that dO V^T gives.
  AttentionBackward(const AttentionArguments& a, const Tensor& grad_out, const Tensor& out, const Tensor& lse,
                    bool needs_grad_bias, const KeepMaskArgs* ranked)
      : a(a), grad_out(torch::stable::contiguous(grad_out)), out(torch::stable::contiguous(out)),
        lse(torch::stable::contiguous(lse)), grad_q(grad_of(a.q)), grad_k(grad_of(a.k)), grad_v(grad_of(a.v)), ranked(ranked) {
    check_dim(grad_out, 4, "grad_out");
    if (needs_grad_bias) {
      grad_bias = torch::stable::new_empty(*a.bias, {a.bias->size(0), a.bias->size(1), a.bias->size(2), a.bias->size(3)},
                                           ScalarType::Float);
      torch::stable::zero_(*grad_bias);
    }
  }

  void run() {
    const int64_t pairs = a.batch * a.kv_heads;
    const QueryParts parts(a.n_q, pairs > 0 && !grad_bias ? (LEAST_PARTS + pairs - 1) / pairs : 1);
    if (parts.count > 1)
      run_parts(parts);
    else if (pairs > 0)
      run_pairs();
    if (ranked) counts.write(ranked->counts);
  }

  // (B, H, n, d) each, and that of the bias, in its type, or an empty one.
  Tensor of_q() const { return torch::stable::transpose(grad_q, 1, 2); }
  Tensor of_k() const { return torch::stable::transpose(grad_k, 1, 2); }
  Tensor of_v() const { return torch::stable::transpose(grad_v, 1, 2); }
  Tensor of_bias() const {
    return grad_bias ? torch::stable::to(*grad_bias, a.bias->scalar_type()) : torch::stable::new_empty(a.q, {0});
  }

 private:
  static Tensor grad_of(const Tensor& x) {
    return torch::stable::new_empty(x, {x.size(0), x.size(2), x.size(1), x.size(3)});  // as projections want it
  }

  int64_t sums() const { return a.n_k * (d + d_v); }

  // Queries [begin, end) of the heads that share a key head, added to `sums`.
  void walk(int64_t b, int64_t kv_head, int64_t begin, int64_t end, float* sums, void* scratch) {
    for (int64_t h = kv_head * a.groups; h < (kv_head + 1) * a.groups; ++h) {
      AttentionBackwardProblem p{};
      p.forward = a.problem(b, h, out, lse);
      if (h == kv_head * a.groups) kernel.pack_keys(p.forward, direction, scratch);
      p.grad_out = a.rows_of(grad_out, b, h);
      p.grad_q = a.rows_of(grad_q, b, h);
      p.grad_k = sums, p.grad_v = sums + a.n_k * d;
      if (grad_bias) {
        const auto step = [&](int dim) { return a.step(*grad_bias, dim); };
        p.grad_bias = static_cast<float*>(grad_bias->mutable_data_ptr()) + b * step(0) + h * step(1);
        p.grad_bias_row_stride = step(2), p.grad_bias_column_stride = step(3);
      }
      const KeepMaskProblem mask = ranked ? selection_problem(*ranked, b * a.heads + h) : KeepMaskProblem{};
      if (ranked) p.ranked = &mask;
      Counts found{};
      kernel.attention_backward(p, begin, end, scratch, found);
      counts.add(found);
    }
  }

  void write(int64_t b, int64_t kv_head, const float* sums) const {
    kernel.write_rows(a.rows_of(grad_k, b, kv_head), 0, a.n_k, a.d, sums, d, nullptr);
    kernel.write_rows(a.rows_of(grad_v, b, kv_head), 0, a.n_k, a.d_v, sums + a.n_k * d, d_v, nullptr);
  }

  int64_t scratch_size() const { return kernel.attention_scratch(a.problem(0, 0, out, lse), direction); }

  // A task for all (sample, key head) pairs that share entries of the bias.
  void run_pairs() {
    const bool all_samples = grad_bias && grad_bias->size(0) == 1, all_heads = grad_bias && grad_bias->size(1) == 1;
    const int64_t sample_tasks = all_samples ? 1 : a.batch, head_tasks = all_heads ? 1 : a.kv_heads;
    const int64_t samples = a.batch / sample_tasks, kv_heads = a.kv_heads / head_tasks;
    torch::stable::parallel_for(0, sample_tasks * head_tasks, 1, [&](int64_t first, int64_t last) {
      const AlignedBuffer scratch(scratch_size()), buffer(sums() * 4);
      float* sum = static_cast<float*>(buffer.get());
      for (int64_t task = first; task < last; ++task)
        for (int64_t b = task / head_tasks * samples, b_end = b + samples; b < b_end; ++b)
          for (int64_t h = task % head_tasks * kv_heads, h_end = h + kv_heads; h < h_end; ++h) {
            std::memset(sum, 0, sums() * 4);
            walk(b, h, 0, a.n_q, sum, scratch.get());
            write(b, h, sum);
          }
    });
  }

  // Few pairs: each is split into parts of its queries, whose sums are added in order.
  void run_parts(const QueryParts& parts) {
    const int64_t pairs = a.batch * a.kv_heads, splits = parts.count, size = (sums() + 15) / 16 * 16;
    const AlignedBuffer buffer(pairs * splits * size * 4);
    float* all = static_cast<float*>(buffer.get());
    torch::stable::parallel_for(0, pairs * splits, 1, [&](int64_t first, int64_t last) {
      const AlignedBuffer scratch(scratch_size());
      for (int64_t task = first; task < last; ++task) {
        const int64_t pair = task / splits, part = task % splits;
        std::memset(all + task * size, 0, size * 4);
        walk(pair / a.kv_heads, pair % a.kv_heads, parts.begin(part), parts.end(part), all + task * size, scratch.get());
      }
    });
    torch::stable::parallel_for(0, pairs, 1, [&](int64_t first, int64_t last) {
      for (int64_t pair = first; pair < last; ++pair) {
        float* sum = all + pair * splits * size;
        for (int64_t split = 1; split < splits; ++split)
          for (int64_t i = 0; i < size; ++i) sum[i] += sum[split * size + i];
        write(pair / a.kv_heads, pair % a.kv_heads, sum);
      }
    });
  }

  const AttentionArguments& a;
  const Kernels& kernel = kernels();
  Tensor grad_out, out, lse, grad_q, grad_k, grad_v;
  std::optional<Tensor> grad_bias;  // float32
  const KeepMaskArgs* ranked;
  AtomicCounts counts;
  const Walk direction = ranked ? Walk::ranked_backward : Walk::backward;
  const int64_t d = kernel.padded_width(a.d), d_v = kernel.padded_width(a.d_v);
};

}  // namespace attrdrop
