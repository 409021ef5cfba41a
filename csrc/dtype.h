// Types of the floating-point elements that kernels read.
#pragma once

namespace attrdrop {

enum class Dtype : int { f32, bf16, f16, f64 };  // f64: relevance_gate alone

}  // namespace attrdrop
