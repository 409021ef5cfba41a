// softmax_dropout_ and its backward: the row-wise half of masked_attention on the CPU, in place on (B, H, n_q, n_k).
#include "checks.h"
#include "ops.h"

namespace attrdrop {

struct SoftmaxArguments {
  const Tensor& scores;
  const std::optional<Tensor>&bias, &keep, &sample_ids;
  double scale, dropout_p;
  int64_t seed;

  void check() const {
    check_dim(scores, 4, "scores");
    STD_TORCH_CHECK(scores.scalar_type() == ScalarType::Float && scores.is_contiguous(),
                    "scores must be contiguous float32");
    if (keep) check_int32(*keep, "keep");
    if (bias) STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float, "bias must be float32");
  }

  SoftmaxProblem problem(int64_t slice, const Tensor& lse) const {
    const int64_t heads = scores.size(1), n_q = scores.size(2), n_k = scores.size(3);
    const int64_t b = slice / heads, h = slice % heads;
    SoftmaxProblem p{};
    p.n_q = n_q, p.n_k = n_k;
    p.scores = const_cast<float*>(scores.const_data_ptr<float>()) + slice * n_q * n_k;
    p.lse = const_cast<float*>(lse.const_data_ptr<float>()) + slice * n_q;
    if (bias) {
      const auto step = [&](int dim) { return bias->size(dim) == 1 ? 0 : bias->stride(dim); };
      p.bias = bias->const_data_ptr<float>() + b * step(0) + h * step(1);
      p.bias_row_stride = step(2);
      p.bias_column_stride = step(3);
    }
    const ValidBits bits = head_bits(keep, b, h, false);
    p.keep = bits.data;
    p.keep_row_stride = bits.row_stride;
    p.scale = static_cast<float>(scale);
    p.draw = head_draw(seed, 0, h, sample_id(sample_ids, b), dropout_p);
    return p;
  }

  // Calls run(slice, begin, end, words of scratch) for every group of rows.
  template <class Run>
  void for_rows(Run run) const {
    const int64_t n_q = scores.size(2), words = word_count(scores.size(3));
    if (scores.numel() == 0) return;
    const RowTasks tasks(scores.size(0) * scores.size(1), n_q);
    torch::stable::parallel_for(0, tasks.count, 1, [&](int64_t begin, int64_t end) {
      const AlignedBuffer dropped(tasks.rows * words * 4);
      for (int64_t task = begin; task < end; ++task)
        run(tasks.head(task), tasks.begin(task), tasks.end(task), static_cast<uint32_t*>(dropped.get()));
    });
  }
};

Tensor softmax_dropout_cpu(Tensor scores, std::optional<Tensor> bias, std::optional<Tensor> keep, double scale,
                           double dropout_p, int64_t seed, std::optional<Tensor> sample_ids) {
  const SoftmaxArguments arguments{scores, bias, keep, sample_ids, scale, dropout_p, seed};
  arguments.check();
  Tensor lse = torch::stable::new_empty(scores, {scores.size(0), scores.size(1), scores.size(2)});
  if (scores.size(3) == 0) torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  const Kernels& kernel = kernels();
  arguments.for_rows([&](int64_t slice, int64_t begin, int64_t end, uint32_t* dropped) {
    kernel.softmax(arguments.problem(slice, lse), begin, end, dropped);
  });
  return lse;
}

Tensor softmax_dropout_backward_cpu(Tensor scores, Tensor grad, Tensor lse, Tensor delta, std::optional<Tensor> bias,
                                    std::optional<Tensor> keep, double scale, double dropout_p, int64_t seed,
                                    std::optional<Tensor> sample_ids, bool needs_grad_bias) {
  const SoftmaxArguments arguments{scores, bias, keep, sample_ids, scale, dropout_p, seed};
  arguments.check();
  STD_TORCH_CHECK(grad.is_contiguous() && grad.numel() == scores.numel(), "grad must be contiguous, of scores' shape");
  STD_TORCH_CHECK(lse.is_contiguous() && delta.is_contiguous(), "lse and delta must be contiguous");
  const int64_t matrix = scores.size(2) * scores.size(3);
  Tensor grad_bias = needs_grad_bias ? torch::stable::empty_like(scores) : new_int32(scores, {0});
  const Kernels& kernel = kernels();
  arguments.for_rows([&](int64_t slice, int64_t begin, int64_t end, uint32_t* dropped) {
    SoftmaxBackwardProblem problem{};
    problem.forward = arguments.problem(slice, lse);
    problem.grad = static_cast<float*>(grad.mutable_data_ptr()) + slice * matrix;
    problem.grad_bias = needs_grad_bias ? static_cast<float*>(grad_bias.mutable_data_ptr()) + slice * matrix : nullptr;
    problem.delta = delta.const_data_ptr<float>() + slice * scores.size(2);
    kernel.softmax_backward(problem, begin, end, dropped);
  });
  return grad_bias;
}

}  // namespace attrdrop
