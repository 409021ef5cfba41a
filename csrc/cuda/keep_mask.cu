// keep_mask on CUDA tensors.
#include "cuda/keep_mask_launch.cuh"

#include <tuple>

#include "checks.h"
#include "cuda/stream.h"

namespace attrdrop {

static Operand operand(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

static bool is_aligned(const Tensor& t) {
  const int64_t item = t.scalar_type() == ScalarType::Float ? 4 : 2;
  int64_t offsets = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.const_data_ptr()));
  for (int dim = 0; dim < 3; ++dim) offsets |= t.size(dim) > 1 ? item * t.stride(dim) : 0;
  return offsets % 16 == 0;
}

static Input input_type(const Tensor& x) {
  switch (kernel_dtype(x, "x")) {
    case Dtype::bf16: return Input::bf16;
    case Dtype::f16: return Input::f16;
    default: return Input::f32;
  }
}

// x (B, H, n_q, d), y (B, H_kv, n_k, d); weight_q (B, H, n_q, e), weight_k (B, H_kv, n_k, e), weight_lse (B, H, n_q).
std::tuple<Tensor, Tensor, Tensor> keep_mask_cuda(Tensor x, Tensor y, double p, double q, int64_t seed, int64_t layer,
                                                  std::optional<Tensor> valid, bool is_causal, bool low, bool bf16_keys,
                                                  std::optional<Tensor> sample_ids, std::optional<Tensor> weight_q,
                                                  std::optional<Tensor> weight_k, std::optional<Tensor> weight_lse,
                                                  double weight_scale) {
  check_dim(x, 4, "x");
  check_dim(y, 4, "y");
  const int64_t batch = x.size(0), heads = x.size(1), n_q = x.size(2), n_k = y.size(2), d = x.size(3);
  STD_TORCH_CHECK(n_k <= longest_row(d, bf16_keys), "y must have at most ", longest_row(d, bf16_keys), " keys on CUDA, got ", n_k);
  const DeviceScope scope(x);
  Tensor rows = new_int32(x, {batch, heads, n_q, word_count(n_k)});
  Tensor cols = new_int32(x, {batch, heads, n_k, word_count(n_q)});
  Tensor counts = torch::stable::new_empty(x, {4}, ScalarType::Long);
  torch::stable::zero_(counts);
  if (batch * heads * n_q * n_k == 0) {
    torch::stable::zero_(rows);
    torch::stable::zero_(cols);
    return {rows, cols, counts};
  }
  KeepMaskArgs args{};
  args.x = operand(x), args.y = operand(y);
  args.is_aligned = is_aligned(x) && is_aligned(y);
  if (weight_q) {
    args.weight_q = operand(*weight_q), args.weight_k = operand(*weight_k);
    args.weight_lse = weight_lse->const_data_ptr<float>();
    args.weight_scale = static_cast<float>(weight_scale);
    args.d_weight = static_cast<int32_t>(weight_q->size(3));
    args.is_aligned &= is_aligned(*weight_q) && is_aligned(*weight_k);
  }
  if (valid) {
    const auto step = [&](int dim) { return valid->size(dim) == 1 ? 0 : valid->stride(dim); };
    args.valid = static_cast<const uint32_t*>(valid->const_data_ptr());
    args.valid_batch = step(0), args.valid_head = step(1), args.valid_row = step(2);
  }
  if (sample_ids) {
    args.sample_ids = sample_ids->const_data_ptr<int64_t>();
    args.sample_stride = sample_ids->stride(0);
  }
  args.rows = static_cast<uint32_t*>(rows.mutable_data_ptr());
  args.cols = static_cast<uint32_t*>(cols.mutable_data_ptr());
  args.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  args.seed = static_cast<uint64_t>(seed), args.layer = static_cast<uint32_t>(layer);
  args.batch = static_cast<int32_t>(batch), args.heads = static_cast<int32_t>(heads);
  args.groups = static_cast<int32_t>(heads / y.size(1));
  args.n_q = static_cast<int32_t>(n_q), args.n_k = static_cast<int32_t>(n_k), args.d = static_cast<int32_t>(d);
  set_rule(args, p, q, low);
  args.is_causal = is_causal;

  Limits limits{0, SCRATCH_BYTES};
  check_cuda(cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, scope.device), "device");
  std::optional<Tensor> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
    return scratch->mutable_data_ptr();
  };
  launch_keep_mask(args, input_type(x), bf16_keys, limits, new_scratch, scope.stream);
  return {rows, cols, counts};
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) { m.impl("keep_mask", TORCH_BOX(&attrdrop::keep_mask_cuda)); }
