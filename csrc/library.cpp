// Registers the CPU implementations and makes the file an importable (empty) Python module.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "checks.h"
#include "cpu/kernels.h"
#include "keep_mask_tensors.h"
#include "occlude_blocks_args.h"
#include "occlude_points_args.h"
#include "ops.h"

namespace attrdrop {

#if !defined(ATTRDROP_CUDA_ARCHS)
#define ATTRDROP_CUDA_ARCHS ""
#endif

// JSON: what was built and what runs here.
std::string build_info() {
  const auto entry = [](const char* name, const std::string& value) {
    return std::string("\"") + name + "\": \"" + value + "\"";
  };
  return "{" + entry("version", ATTRDROP_VERSION) + ", " + entry("compiler", __VERSION__) + ", " +
         entry("isa", kernels().isa) + ", " + entry("isa_available", available_isas()) + ", " +
         entry("cuda_archs", ATTRDROP_CUDA_ARCHS) + "}";
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&attrdrop::build_info)); }

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CPU, m) {
  m.impl("pack_mask", TORCH_BOX(&attrdrop::pack_mask_cpu));
  m.impl("unpack_mask", TORCH_BOX(&attrdrop::unpack_mask_cpu));
  m.impl("transpose_mask", TORCH_BOX(&attrdrop::transpose_mask_cpu));
  m.impl("keep_mask", TORCH_BOX((&attrdrop::keep_mask_op<attrdrop::Tensor, &attrdrop::keep_mask_cpu>)));
  m.impl("random_keep_mask", TORCH_BOX((&attrdrop::random_keep_mask_op<attrdrop::Tensor, &attrdrop::keep_mask_cpu>)));
  m.impl("keep_scores", TORCH_BOX((&attrdrop::keep_scores_op<attrdrop::Tensor, &attrdrop::keep_scores_cpu>)));
  m.impl("masked_attention", TORCH_BOX(&attrdrop::masked_attention_cpu));
  m.impl("masked_attention_backward", TORCH_BOX(&attrdrop::masked_attention_backward_cpu));
  m.impl("ranked_attention_backward", TORCH_BOX(&attrdrop::ranked_attention_backward_cpu));
  m.impl("attention_attribution", TORCH_BOX(&attrdrop::attention_attribution_cpu));
  m.impl("relevance_gate", TORCH_BOX(&attrdrop::relevance_gate_cpu));
  m.impl("relevance_gate_backward", TORCH_BOX(&attrdrop::relevance_gate_backward_cpu));
  m.impl("occlude_blocks_", TORCH_BOX((&attrdrop::occlude_blocks_op<attrdrop::Tensor, attrdrop::occlude_blocks_cpu>)));
  m.impl("fill_blocks_", TORCH_BOX((&attrdrop::fill_blocks_op<attrdrop::Tensor, attrdrop::fill_blocks_cpu>)));
  m.impl("occlude_points_", TORCH_BOX((&attrdrop::occlude_points_op<attrdrop::Tensor, attrdrop::occlude_points_cpu>)));
  m.impl("draw_images", TORCH_BOX(&attrdrop::draw_images_cpu));
  m.impl("farthest_point_sample", TORCH_BOX(&attrdrop::farthest_point_sample_cpu));
  m.impl("ball_query", TORCH_BOX(&attrdrop::ball_query_cpu));
  m.impl("group_points", TORCH_BOX(&attrdrop::group_points_cpu));
  m.impl("scatter_points", TORCH_BOX(&attrdrop::scatter_points_cpu));
}

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module); }
