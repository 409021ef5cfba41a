// occlude_blocks_ and fill_blocks_ on CUDA tensors.
#include "cuda/occlude_blocks.cuh"

#include "checks.h"
#include "cuda/stream.h"
#include "occlude_blocks_args.h"

namespace attrdrop {

// Gives the boxes (N, 4).
Tensor occlude_blocks_cuda(Tensor images, BlockProblem p) {
  const DeviceScope scope(images);
  Tensor boxes = new_int32(images, {images.size(0), 4});
  p.boxes = static_cast<int32_t*>(boxes.mutable_data_ptr());
  launch_occlude_blocks(p, scope.stream);
  return boxes;
}

void fill_blocks_cuda(Tensor images, BlockFill fill, const int32_t* boxes) {
  const DeviceScope scope(images);
  launch_fill_blocks(fill, boxes, scope.stream);
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("occlude_blocks_", TORCH_BOX((&attrdrop::occlude_blocks_op<attrdrop::Tensor, attrdrop::occlude_blocks_cuda>)));
  m.impl("fill_blocks_", TORCH_BOX((&attrdrop::fill_blocks_op<attrdrop::Tensor, attrdrop::fill_blocks_cuda>)));
}
