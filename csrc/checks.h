// Tensor arguments of the operators: checks that name the argument, and views of (sample, head) slices.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <new>
#include <optional>

#include "array_view.h"
#include "bits.h"
#include "cpu/kernels.h"

namespace attrdrop {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Kind kind_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Byte: return Kind::u8;
    case ScalarType::Half: return Kind::f16;
    case ScalarType::BFloat16: return Kind::bf16;
    case ScalarType::Float: return Kind::f32;
    case ScalarType::Bool: return Kind::boolean;
    case ScalarType::Int: return Kind::i32;
    case ScalarType::Long: return Kind::i64;
    default: return Kind::other;
  }
}

template <>
inline ArrayView view_of(const Tensor& t) {
  ArrayView view{t.const_data_ptr(), kind_of(t), t.dim(), {}, {}};
  for (int64_t d = 0; d < view.dim && d < 4; ++d) view.size[d] = t.size(d), view.stride[d] = t.stride(d);
  return view;
}

inline Dtype kernel_dtype(const Tensor& t, const char* name) { return float_type(kind_of(t), name); }

inline void check_dim(const Tensor& t, int64_t dim, const char* name) {
  require(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}

inline void check_int32(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int, name, " must be packed int32 words");
  STD_TORCH_CHECK(t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1, name, " must have unit stride in its last dimension");
}

// (B, H, n, d) with unit last stride -> the matrix of one (sample, head); heads are shared by groups of query heads.
inline Matrix head_matrix(const Tensor& t, int64_t sample, int64_t head, const char* name) {
  const int64_t item = t.scalar_type() == ScalarType::Float ? 4 : 2;
  const char* data = static_cast<const char*>(t.const_data_ptr());
  return {data + item * (sample * t.stride(0) + head * t.stride(1)), t.stride(2), kernel_dtype(t, name)};
}

// Packed bits broadcastable to (B, H, n_q, W): the rows of one (sample, head).
inline ValidBits head_bits(const std::optional<Tensor>& bits, int64_t sample, int64_t head, bool is_causal) {
  if (!bits) return {nullptr, 0, is_causal};
  const auto step = [&](int dim) { return bits->size(dim) == 1 ? 0 : bits->stride(dim); };
  const uint32_t* data = static_cast<const uint32_t*>(bits->const_data_ptr());
  return {data + sample * step(0) + head * step(1), step(2), is_causal};
}

// A bias (B|1, H|1, n_q|1, n_k|1): the matrix of one (sample, head) and the stride of its columns, 0 where it is broadcast.
inline void head_bias(const Tensor& bias, int64_t sample, int64_t head, Matrix& matrix, int64_t& column_stride) {
  const auto step = [&](int dim) { return bias.size(dim) == 1 ? 0 : bias.stride(dim); };
  const int64_t item = bias.scalar_type() == ScalarType::Float ? 4 : 2;
  const char* data = static_cast<const char*>(bias.const_data_ptr());
  matrix = {data + item * (sample * step(0) + head * step(1)), step(2), kernel_dtype(bias, "bias")};
  column_stride = step(3);
}

inline uint32_t sample_id(const std::optional<Tensor>& ids, int64_t sample) {
  return static_cast<uint32_t>(ids ? ids->const_data_ptr<int64_t>()[sample * ids->stride(0)] : sample);
}

inline Draw head_draw(int64_t seed, int64_t layer, int64_t head, uint32_t sample, double rate) {
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(head + 65536 * layer), sample, drop_threshold(rate)};
}

// Memory of one task, aligned for the widest vectors.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes) + 64, std::align_val_t(64))) {}
  ~AlignedBuffer() { ::operator delete(data_, std::align_val_t(64)); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  void* get() const { return data_; }

 private:
  void* data_;
};

inline Tensor new_int32(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, shape, ScalarType::Int);
}

// Samples that make a task, of `elements` each: waking a thread for less costs more than it saves.
inline int64_t grain(int64_t elements) {
  const int64_t samples = 65536 / (elements > 1 ? elements : 1);
  return samples > 1 ? samples : 1;
}

// Splits n rows of `heads` heads into tasks of whole 32-row groups, enough of them to keep every thread busy.
struct RowTasks {
  RowTasks(int64_t heads, int64_t n) : n(n) {
    constexpr int64_t least_rows = 128;
    const int64_t wanted_tasks = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t per_head = heads > 0 && n > 0 ? (wanted_tasks + heads - 1) / heads : 1;
    const int64_t share = (n + per_head - 1) / per_head;
    rows = (share > least_rows ? share + 31 : least_rows) / 32 * 32;
    per_head_tasks = n > 0 ? (n + rows - 1) / rows : 0;
    count = heads * per_head_tasks;
  }
  int64_t head(int64_t task) const { return task / per_head_tasks; }
  int64_t begin(int64_t task) const { return task % per_head_tasks * rows; }
  int64_t end(int64_t task) const { return begin(task) + rows < n ? begin(task) + rows : n; }
  int64_t n, rows, per_head_tasks, count;
};

}  // namespace attrdrop
