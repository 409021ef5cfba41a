// The operators' CPU implementations, registered in library.cpp; their schemas stand in attrdrop/_core/library.py.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "keep_mask_args.h"

namespace attrdrop {

using torch::stable::Tensor;

// Packed arguments: see occlude_blocks_args.h and occlude_points_args.h.
struct BlockProblem;
struct BlockFill;
struct PointProblem;

Tensor pack_mask_cpu(Tensor mask);
Tensor unpack_mask_cpu(Tensor bits, int64_t n);
Tensor transpose_mask_cpu(Tensor rows, int64_t n_k);
std::tuple<Tensor, Tensor, Tensor> keep_mask_cpu(const Tensor& like, KeepMaskArgs args);
std::tuple<Tensor, Tensor> keep_scores_cpu(const Tensor& like, KeepMaskArgs args);
std::tuple<Tensor, Tensor> masked_attention_cpu(Tensor q, Tensor k, Tensor v, Tensor keep, std::optional<Tensor> bias,
                                                double scale, double dropout_p, int64_t seed,
                                                std::optional<Tensor> sample_ids);
std::tuple<Tensor, Tensor, Tensor, Tensor> masked_attention_backward_cpu(
    Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep, Tensor keep_cols,
    std::optional<Tensor> bias, double scale, double dropout_p, int64_t seed, std::optional<Tensor> sample_ids,
    bool needs_grad_bias);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ranked_attention_backward_cpu(
    Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep, Tensor keep_cols,
    std::optional<Tensor> bias, double scale, double dropout_p, int64_t seed, std::optional<Tensor> sample_ids,
    bool needs_grad_bias, double p, double rate, int64_t mask_seed, int64_t layer, bool low, bool bf16_keys);
std::tuple<Tensor, Tensor> attention_attribution_cpu(std::optional<Tensor> grad_out, std::optional<Tensor> v,
                                                     std::optional<Tensor> weight_q, std::optional<Tensor> weight_k,
                                                     std::optional<Tensor> weight_lse, double scale,
                                                     std::optional<Tensor> bias, std::optional<Tensor> valid,
                                                     bool is_causal, int64_t k);
Tensor relevance_gate_cpu(Tensor z, std::optional<Tensor> scale, std::optional<Tensor> shift, bool relu);
Tensor relevance_gate_backward_cpu(Tensor grad, Tensor y, std::optional<Tensor> surrogate, std::optional<Tensor> scale,
                                   double eps);
Tensor occlude_blocks_cpu(Tensor images, BlockProblem p);
void fill_blocks_cpu(Tensor images, BlockFill fill, const int32_t* boxes);
Tensor occlude_points_cpu(Tensor points, PointProblem p);
Tensor draw_images_cpu(Tensor sample_ids, double p, double alpha, int64_t seed, bool per_batch);
Tensor farthest_point_sample_cpu(Tensor points, int64_t n, std::optional<Tensor> valid, std::optional<Tensor> start);
Tensor ball_query_cpu(Tensor points, Tensor centres, std::vector<double> radius, std::vector<int64_t> k,
                      std::optional<Tensor> valid);
Tensor group_points_cpu(Tensor points, Tensor index, std::optional<Tensor> centres);
Tensor scatter_points_cpu(Tensor grad, Tensor index, int64_t size, std::optional<Tensor> order,
                          std::optional<Tensor> starts);

}  // namespace attrdrop
