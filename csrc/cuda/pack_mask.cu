// pack_mask, unpack_mask, transpose_mask on CUDA tensors.
#include "cuda/pack_mask.cuh"

#include "checks.h"
#include "cuda/stream.h"

namespace attrdrop {

Tensor pack_mask_cuda(Tensor mask) {
  check_dim(mask, 2, "mask");
  const int64_t rows = mask.size(0), n = mask.size(1);
  const DeviceScope scope(mask);
  Tensor bits = new_int32(mask, {rows, word_count(n)});
  launch_pack_mask(static_cast<const uint8_t*>(mask.const_data_ptr()), static_cast<uint32_t*>(bits.mutable_data_ptr()),
                   rows, n, mask.stride(0), mask.stride(1), scope.stream);
  return bits;
}

Tensor unpack_mask_cuda(Tensor bits, int64_t n) {
  check_dim(bits, 2, "bits");
  check_int32(bits, "bits");
  const int64_t rows = bits.size(0);
  STD_TORCH_CHECK(bits.size(1) == word_count(n), "bits must have ", word_count(n), " words a row for n = ", n);
  const DeviceScope scope(bits);
  Tensor mask = torch::stable::new_empty(bits, {rows, n}, ScalarType::Bool);
  launch_unpack_mask(static_cast<const uint32_t*>(bits.const_data_ptr()), static_cast<uint8_t*>(mask.mutable_data_ptr()),
                     rows, n, bits.stride(0), scope.stream);
  return mask;
}

Tensor transpose_mask_cuda(Tensor rows, int64_t n_k) {
  check_dim(rows, 3, "rows");
  check_int32(rows, "rows");
  const int64_t heads = rows.size(0), n_q = rows.size(1);
  const DeviceScope scope(rows);
  Tensor cols = new_int32(rows, {heads, n_k, word_count(n_q)});
  launch_transpose_mask(static_cast<const uint32_t*>(rows.const_data_ptr()),
                        static_cast<uint32_t*>(cols.mutable_data_ptr()), heads, n_q, n_k, rows.stride(0), rows.stride(1),
                        scope.stream);
  return cols;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("pack_mask", TORCH_BOX(&attrdrop::pack_mask_cuda));
  m.impl("unpack_mask", TORCH_BOX(&attrdrop::unpack_mask_cuda));
  m.impl("transpose_mask", TORCH_BOX(&attrdrop::transpose_mask_cuda));
}
