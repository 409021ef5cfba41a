// Tensors of the occluding operators as the kernels want them, for the CPU and the CUDA side.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "checks.h"
#include "occlusion.h"

namespace attrdrop {

inline Element element_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Byte: return Element::u8;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Float: return Element::f32;
    default: STD_TORCH_CHECK(false, name, " must be uint8, float16, bfloat16 or float32 for the compiled kernels");
  }
}

inline Element relevance_type(const Tensor& relevance) {
  const Element type = element_type(relevance, "relevance");
  STD_TORCH_CHECK(type != Element::u8, "relevance must be float32, bfloat16 or float16 for the compiled kernels");
  return type;
}

// The bits of a number in a type.
inline uint32_t value_bits(double value, Element type) {
  const float narrow = static_cast<float>(value);
  uint32_t bits = 0;
  switch (type) {
    case Element::u8: return static_cast<uint8_t>(value);
    case Element::f16: return torch::headeronly::Half(narrow).x;
    case Element::bf16: return torch::headeronly::BFloat16(narrow).x;
    case Element::f32: std::memcpy(&bits, &narrow, sizeof bits);
  }
  return bits;
}

// `value`, or one of `values` for each of the channels of `like`.
inline Constant constant_of(double value, const std::optional<Tensor>& values, const Tensor& like, int64_t channels,
                            const char* name) {
  Constant constant{nullptr, 0, value_bits(value, element_type(like, name))};
  if (values) {
    STD_TORCH_CHECK(values->scalar_type() == like.scalar_type() && values->numel() == channels, "value must have the type of ",
                    name, " and one number for each channel");
    constant.values = values->const_data_ptr();
    constant.stride = values->dim() ? values->stride(0) : 0;
  }
  return constant;
}

inline SampleIds sample_ids_of(const std::optional<Tensor>& ids, int64_t count) {
  if (!ids) return {};
  STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long && ids->numel() == count,
                  "sample_ids must be int64, one for each sample");
  return {ids->const_data_ptr<int64_t>(), ids->dim() ? ids->stride(0) : 0};
}

}  // namespace attrdrop
