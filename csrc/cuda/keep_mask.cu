// keep_mask, random_keep_mask and keep_scores on CUDA tensors.
#include "cuda/keep_mask_launch.cuh"

#include "cuda/stream.h"
#include "keep_mask_tensors.h"

namespace attrdrop {

template <auto NEW_TENSORS>
static auto keep_mask_cuda(const Tensor& like, KeepMaskArgs args) {
  STD_TORCH_CHECK(args.n_k <= longest_row(args), "rows must have at most ", longest_row(args), " keys on CUDA, got ", args.n_k);
  const DeviceScope scope(like);
  auto made = NEW_TENSORS(like, args);
  if (is_empty(args)) return made;
  Limits limits{0, SCRATCH_BYTES};
  check_cuda(cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, scope.device), "device");
  std::optional<Tensor> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
    return scratch->mutable_data_ptr();
  };
  launch_keep_mask(args, limits, new_scratch, scope.stream);
  return made;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  using namespace attrdrop;
  m.impl("keep_mask", TORCH_BOX((&keep_mask_op<Tensor, &keep_mask_cuda<new_keep_mask>>)));
  m.impl("random_keep_mask", TORCH_BOX((&random_keep_mask_op<Tensor, &keep_mask_cuda<new_keep_mask>>)));
  m.impl("keep_scores", TORCH_BOX((&keep_scores_op<Tensor, &keep_mask_cuda<new_keep_scores>>)));
}
