// Arguments of the occluding operators as the kernels want them: for the CPU, for CUDA and for the emulator.
#pragma once
#include "array_view.h"
#include "occlusion.h"

namespace attrdrop {

inline Element element_type(const ArrayView& t, const char* name) {
  require(t.kind <= Kind::f32, name, " must be uint8, float16, bfloat16 or float32 for the compiled kernels");
  return static_cast<Element>(t.kind);  // the first types are the elements
}

inline Element relevance_type(const ArrayView& relevance) {
  const Element type = element_type(relevance, "relevance");
  require(type != Element::u8, "relevance must be float32, bfloat16 or float16 for the compiled kernels");
  return type;
}

// `value`, or one of `values` for each of the channels of `like`.
inline Constant constant_of(double value, const OptionalView& values, const ArrayView& like, int64_t channels,
                            const char* name) {
  Constant constant{nullptr, 0, value_bits(value, element_type(like, name))};
  if (values) {
    require(values->kind == like.kind && values->numel() == channels, "value must have the type of ", name,
            " and one number for each channel");
    constant.values = values->data;
    constant.stride = values->dim ? values->stride[0] : 0;
  }
  return constant;
}

inline SampleIds sample_ids_of(const OptionalView& ids, int64_t count) {
  if (!ids) return {};
  require(ids->kind == Kind::i64 && ids->numel() == count, "sample_ids must be int64, one for each sample");
  return {ids->as<int64_t>(), ids->dim ? ids->stride[0] : 0};
}

}  // namespace attrdrop
