// Tiles of x y^T (Eq. 5) as keys: rows of x stay, columns of y stream through shared memory, mostly two tiles in turns.
//
// A warp multiplies 16 rows by the 32 columns of a word. Lane 4 g + t ends with rows g and g + 8 at columns 2t and 2t + 1
// of each 8, for every type of input: so it holds the pairs that bfloat16 keys keep in one register.
#pragma once
#include "cuda/async_copy.cuh"
#include "cuda/keys.cuh"
#include "cuda/mma.cuh"
#include "keep_mask_args.h"

namespace attrdrop {

struct Sums {
  float c[4][4];  // [8 columns][fragment: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)]
};

// Rows of an operand in shared memory, in units of 16 bytes, zero past the end.
template <class T>
struct Rows {  // Bf16, F16
  static constexpr int PER_UNIT = 8;
  __host__ __device__ static int units(int d) { return (d + 63) / 64 * 8; }
  __host__ __device__ static int row_bytes(int d) { return 16 * units(d); }
  // Units change places within 128 bytes: the eight rows that are read at once lie in different banks.
  __device__ __forceinline__ static int unit(int row, int unit) { return unit ^ (row & 7); }
};

template <>
struct Rows<F32> {
  static constexpr int PER_UNIT = 4;
  __host__ __device__ static int units(int d) { return (d + 3) / 4; }
  __host__ __device__ static int row_bytes(int d) { return 16 * units(d) + 16; }
  __device__ __forceinline__ static int unit(int, int unit) { return unit; }
};

// Copies rows of data (n, d) to shared memory, in tiles of `count` rows; rows at and past n become zero.
template <class T>
struct RowCopy {
  using Storage = typename T::Storage;
  const Storage* data;
  int64_t row_stride;
  int count, n, d;
  bool is_aligned;
  // Mostly a thread copies the same unit of every row_step-th row, and what it needs for that is the same for every tile.
  int row_step;    // else 0
  int row, place;  // of the first one in the tile
  bool is_inside;  // left of d

  __device__ __forceinline__ RowCopy(const Storage* data, int64_t row_stride, int count, int n, int d, bool is_aligned)
      : data(data), row_stride(row_stride), count(count), n(n), d(d), is_aligned(is_aligned) {
    const int units = Rows<T>::units(d), threads = blockDim.x, bits = units ? __popc(units - 1) : 0;
    row_step = threads >> bits;
    if (!is_aligned || 1 << bits != units || row_step % 8 || d % Rows<T>::PER_UNIT) row_step = 0;
    row = threadIdx.x >> bits;
    const int unit = threadIdx.x - (row << bits), first = unit * Rows<T>::PER_UNIT;
    place = row * Rows<T>::row_bytes(d) + 16 * Rows<T>::unit(row, unit);
    is_inside = first < d;
    this->data += is_inside && row_step ? first : 0;
  }

  // Starts to copy rows [begin, begin + count).
  __device__ __forceinline__ void start(unsigned char* target, int begin) const {
    if (row_step == 0) return start_anyhow(target, begin);
    const int place_step = row_step * Rows<T>::row_bytes(d), last = is_inside ? n - begin : 0;
    const int64_t step = row_step * row_stride;
    const Storage* source = data + (begin + row) * row_stride;
    SharedAddress shared = shared_address(target) + place;
#pragma unroll 4
    for (int r = row; r < count; r += row_step, shared += place_step, source += step)
      async_copy_if(r < last, shared, source);
  }

 private:
  __device__ __forceinline__ void start_anyhow(unsigned char* target, int begin) const {
    const int units = Rows<T>::units(d), row_bytes = Rows<T>::row_bytes(d);
    for (int i = threadIdx.x; i < count * units; i += blockDim.x) {
      const int r = i / units, u = i % units, first = u * Rows<T>::PER_UNIT;
      const int left = begin + r < n && first < d ? d - first : 0, size = left < Rows<T>::PER_UNIT ? left : Rows<T>::PER_UNIT;
      unsigned char* unit = target + r * row_bytes + 16 * Rows<T>::unit(r, u);
      const Storage* source = data + (size ? (begin + r) * row_stride + first : 0);
      if (is_aligned) {
        async_copy(shared_address(unit), source, size * static_cast<int>(sizeof(Storage)));
      } else {
        auto* elements = reinterpret_cast<Storage*>(unit);
#pragma unroll
        for (int e = 0; e < Rows<T>::PER_UNIT; ++e) elements[e] = e < size ? source[e] : Storage{};
      }
    }
  }
};

// 16 rows of x for 32 values of d, as two left operands of mma_m16n8k16.
template <class T>
struct XFragment {
  uint32_t a[2][4];
  __device__ __forceinline__ void load(SharedAddress x, int row_bytes, int chunk) {
    const int lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      load_matrices(a[half], x + row * row_bytes + 16 * Rows<T>::unit(row, 4 * chunk + 2 * half + lane / 16));
  }
};

template <class T>
__device__ __forceinline__ void multiply_chunk(Sums& sums, const XFragment<T>& x, SharedAddress y, int row_bytes, int chunk) {
  const int lane = threadIdx.x % 32, row = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t b[4];  // 8 rows of y for 32 values of d
    load_matrices(b, y + (8 * i + row) * row_bytes + 16 * Rows<T>::unit(row, 4 * chunk + lane / 8));
    mma_m16n8k16<T>(sums.c[i], x.a[0], {b[0], b[1]});
    mma_m16n8k16<T>(sums.c[i], x.a[1], {b[2], b[3]});
  }
}

// x (16, d) times y (32, d)^T, both in shared memory.
template <class T>
__device__ __forceinline__ void multiply(Sums& sums, unsigned char* x, unsigned char* y, int d) {
  const int row_bytes = Rows<T>::row_bytes(d);
  for (int chunk = 0; chunk < Rows<T>::units(d) / 4; ++chunk) {
    XFragment<T> fragment;
    fragment.load(shared_address(x), row_bytes, chunk);
    multiply_chunk<T>(sums, fragment, shared_address(y), row_bytes, chunk);
  }
}

// float32: one chain of fused multiply-adds over d in ascending order, as in csrc/cpu/isa/tile.h, so the keys are the same.
template <>
__device__ __forceinline__ void multiply<F32>(Sums& sums, unsigned char* x, unsigned char* y, int d) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row_bytes = Rows<F32>::row_bytes(d);
  for (int u = 0; u < Rows<F32>::units(d); ++u) {
    const float4 low = *reinterpret_cast<const float4*>(x + g * row_bytes + 16 * u);
    const float4 high = *reinterpret_cast<const float4*>(x + (g + 8) * row_bytes + 16 * u);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(y + (8 * i + 2 * t + j) * row_bytes + 16 * u);
        float &first = sums.c[i][j], &second = sums.c[i][2 + j];
        first = fmaf(low.w, b.w, fmaf(low.z, b.z, fmaf(low.y, b.y, fmaf(low.x, b.x, first))));
        second = fmaf(high.w, b.w, fmaf(high.z, b.z, fmaf(high.y, b.y, fmaf(high.x, b.x, second))));
      }
  }
}

__device__ __forceinline__ float load_bias(const Bias& bias, int64_t at) {
  if (bias.dtype == Dtype::f32) return static_cast<const float*>(bias.data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(bias.data)[at];
  return bias.dtype == Dtype::bf16 ? Bf16::widen(bits) : F16::widen(bits);
}

// sums * scale + bias, rounded once, of the 16 rows from `row` and the 32 columns from `column` on.
__device__ __forceinline__ void scale_and_add(Sums& sums, const KeepMaskArgs& args, const BlockPlace& place, int row,
                                              int column) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int64_t start = place.sample * args.bias.batch + place.head * args.bias.head;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + 8 * half + g;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = column + i / 2 * 8 + 2 * t + i % 2;
      float& sum = sums.c[i / 2][2 * half + i % 2];
      if (r < args.n_q && c < args.n_k)
        sum = fmaf(sum, args.scale, load_bias(args.bias, start + r * args.bias.row + c * args.bias.column));
    }
  }
}

// Where the parts of a block's shared memory lie, in bytes, and how its work is cut.
struct TilePlan {
  int block_rows;       // 128, 64, 32 or 16 rows of one head
  int row_groups_log2;  // groups of 16 rows, the work of one warp
  int threads;       // 256 or 512
  int tile_columns;  // of y in one stage, a multiple of 32
  int stages;        // 2: the next tile is copied while this one is multiplied; 1 where memory is short
  int key_bytes;     // of a row of keys, with what keeps rows off each other's banks
  int strip_bytes;   // the keys of all rows; 0 where they go to scratch memory
  int x_bytes, q_bytes;   // rows of x and weight_q
  int y_bytes, k_bytes;   // one stage of y and weight_k
  __host__ __device__ int shared_bytes() const { return strip_bytes + x_bytes + q_bytes + stages * (y_bytes + k_bytes); }
};

// Keys of the block's rows and columns [first, end) to keys + row * key_stride. CHUNKS > 0: d <= 32 CHUNKS, x stays in
// registers, and none are left for a bias.
template <class T, class Keys, int CHUNKS, bool WEIGHTED>
__device__ __forceinline__ void multiply_tiles(const KeepMaskArgs& args, const TilePlan& plan, const BlockPlace& place,
                                               int first, int end, unsigned char* shared, unsigned char* keys,
                                               int64_t key_stride) {
  using Storage = typename T::Storage;
  const auto slice = [&](const Operand& o, int head) {
    return static_cast<const Storage*>(o.data) + place.sample * o.batch + head * o.head;
  };
  const Storage *x = slice(args.x, place.head), *y = slice(args.y, place.kv_head);
  unsigned char* x_tile = shared + plan.strip_bytes;
  unsigned char* q_tile = x_tile + plan.x_bytes;
  unsigned char* stages = q_tile + plan.q_bytes;
  const RowCopy<T> copy_y(y, args.y.row, plan.tile_columns, args.n_k, args.d, args.is_aligned);
  const auto stage = [&](int begin, int turn) {  // y (tile_columns, d), weight_k (tile_columns, e)
    unsigned char* y_tile = stages + turn * (plan.y_bytes + plan.k_bytes);
    copy_y.start(y_tile, begin);
    if constexpr (WEIGHTED)
      RowCopy<T>(slice(args.weight_k, place.kv_head), args.weight_k.row, plan.tile_columns, args.n_k, args.d_weight, args.is_aligned)
          .start(y_tile + plan.y_bytes, begin);
    async_commit();
  };
  RowCopy<T>(x, args.x.row, plan.block_rows, args.n_q, args.d, args.is_aligned).start(x_tile, place.row);
  if constexpr (WEIGHTED)
    RowCopy<T>(slice(args.weight_q, place.head), args.weight_q.row, plan.block_rows, args.n_q, args.d_weight, args.is_aligned)
        .start(q_tile, place.row);
  stage(first, 0);

  // The warps of a row of tiles share the columns of each tile.
  const int warp = threadIdx.x / 32, columns_at_once = plan.threads >> plan.row_groups_log2;
  const int first_column = (warp >> plan.row_groups_log2) * 32, row = warp * 16 - ((first_column / 32) << plan.row_groups_log2) * 16;
  const int row_bytes = CHUNKS > 0 ? 64 * CHUNKS : Rows<T>::row_bytes(args.d);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  [[maybe_unused]] XFragment<T> fragments[CHUNKS > 0 ? CHUNKS : 1];
  for (int begin = first, turn = 0; begin < end; begin += plan.tile_columns, turn ^= plan.stages - 1) {
    const bool is_last = begin + plan.tile_columns >= end;
    async_wait<0>();
    __syncthreads();  // this stage is there, and nobody reads the other one any more
    if constexpr (CHUNKS > 0) {
      if (begin == first) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) fragments[chunk].load(shared_address(x_tile) + row * row_bytes, row_bytes, chunk);
      }
    }
    if (plan.stages == 2 && !is_last) stage(begin + plan.tile_columns, turn ^ 1);
    unsigned char* y_tile = stages + turn * (plan.y_bytes + plan.k_bytes);
    for (int column = first_column; column < plan.tile_columns && begin + column < end; column += columns_at_once) {
      Sums sums{};
      if constexpr (CHUNKS > 0) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk)
          multiply_chunk<T>(sums, fragments[chunk], shared_address(y_tile) + column * row_bytes, row_bytes, chunk);
      } else {
        multiply<T>(sums, x_tile + row * row_bytes, y_tile + column * row_bytes, args.d);
      }
      if constexpr (WEIGHTED) {
        const int weight_bytes = Rows<T>::row_bytes(args.d_weight);
        Sums scores{};
        multiply<T>(scores, q_tile + row * weight_bytes, y_tile + plan.y_bytes + column * weight_bytes, args.d_weight);
        if (args.bias.data) scale_and_add(scores, args, place, place.row + row, begin + column);
        const float scale = args.bias.data ? 1.0f : args.scale;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = place.row + row + 8 * half + g;
          const float lse = at < args.n_q ? args.weight_lse[place.slice * args.n_q + at] : 0.0f;
#pragma unroll
          for (int i = 0; i < 8; ++i)  // Eq. 3
            sums.c[i / 2][2 * half + i % 2] *= expf(fmaf(scores.c[i / 2][2 * half + i % 2], scale, -lse));
        }
      } else if constexpr (CHUNKS == 0) {
        if (args.bias.data) scale_and_add(sums, args, place, place.row + row, begin + column);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          Keys::store(keys + (row + 8 * half + g) * key_stride, (begin + column) / 32, 8 * i + 2 * t,
                      {sums.c[i][2 * half], sums.c[i][2 * half + 1], sums.c[i + 2][2 * half], sums.c[i + 2][2 * half + 1]});
    }
    if (plan.stages == 1 && !is_last) {
      __syncthreads();
      stage(begin + plan.tile_columns, 0);
    }
  }
  __syncthreads();
}

}  // namespace attrdrop
