// group_points and scatter_points on CUDA: consecutive threads move consecutive channels; sums have a fixed order.
#pragma once
#include "cuda/points.cuh"

namespace attrdrop {

constexpr int GROUP_THREADS = 256;

// Threads of a grid of (blocks, clouds) that work on `count` elements of each cloud.
inline dim3 cloud_grid(int64_t count, int32_t clouds) {
  const int64_t blocks = (count + GROUP_THREADS - 1) / GROUP_THREADS;
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(clouds < 65535 ? clouds : 65535));
}

// Neighbouring channels of a row, read and written at once.
template <class Storage, int COUNT>
struct alignas(sizeof(Storage) * COUNT) Pack {
  Storage element[COUNT];
};

// A thread for each pack of COUNT channels of each row.
template <class T, int COUNT>
__global__ void __launch_bounds__(GROUP_THREADS) group_points_kernel(GroupProblem a) {
  using Storage = typename T::Storage;
  const uint32_t packs = a.channels / COUNT, k = static_cast<uint32_t>(a.k);
  const uint32_t i = blockIdx.x * GROUP_THREADS + threadIdx.x, row = i / packs, channel = i % packs * COUNT;
  if (row >= a.centres_each * a.k) return;
  const int64_t centre = row / k, place = row % k;
  for (int64_t n = blockIdx.y; n < a.clouds; n += gridDim.y) {
    const int64_t given = a.index.data[n * a.index.cloud + centre * a.index.centre + place * a.index.place];
    const Storage* from = static_cast<const Storage*>(a.points.data) + n * a.points.cloud +
                          moved_into_range(given, a.size) * a.points.point + channel * a.points.channel;
    Pack<Storage, COUNT> pack = *reinterpret_cast<const Pack<Storage, COUNT>*>(from);
    if (a.centres.data && channel < 3) {
#pragma unroll
      for (int c = 0; c < COUNT; ++c) {
        if (channel + c >= 3) break;
        const int64_t at = n * a.centres.cloud + centre * a.centres.point + (channel + c) * a.centres.channel;
        const float less = T::widen(static_cast<const Storage*>(a.centres.data)[at]);
        pack.element[c] = T::narrow(T::widen(pack.element[c]) - less);
      }
    }
    Storage* out = static_cast<Storage*>(a.out) + (n * a.centres_each * a.k + row) * a.channels + channel;
    *reinterpret_cast<Pack<Storage, COUNT>*>(out) = pack;
  }
}

// A thread for each channel of each point adds up its rows.
template <class T>
__global__ void __launch_bounds__(GROUP_THREADS) scatter_points_kernel(ScatterProblem a) {
  using Storage = typename T::Storage;
  const uint32_t i = blockIdx.x * GROUP_THREADS + threadIdx.x, channels = static_cast<uint32_t>(a.channels);
  const uint32_t point = i / channels, channel = i % channels, rows = static_cast<uint32_t>(a.centres_each * a.k);
  if (point >= static_cast<uint32_t>(a.size)) return;
  for (int64_t n = blockIdx.y; n < a.clouds; n += gridDim.y) {
    const Storage* grad = static_cast<const Storage*>(a.grad.data) + n * a.grad.cloud + channel * a.grad.channel;
    const int64_t* start = a.starts + n * a.size + point;
    float sum = 0.0f;
    for (int64_t j = start[0]; j < start[1]; ++j) {
      const uint32_t row = static_cast<uint32_t>(a.order[j] - n * rows), k = static_cast<uint32_t>(a.k);
      sum += T::widen(grad[row / k * a.grad.centre + row % k * a.grad.place]);
    }
    static_cast<Storage*>(a.out)[(n * a.size + point) * a.channels + channel] = T::narrow(sum);
  }
}

// Whether rows of points consist of aligned packs of 16 bytes.
inline bool is_packed(const GroupProblem& a, int64_t item) {
  const int64_t offsets = static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.points.data)) | item * a.points.cloud |
                          item * a.points.point | item * a.channels;
  return a.points.channel == 1 && offsets % 16 == 0;
}

template <class T>
void launch_group_points(const GroupProblem& a, Stream stream) {
  constexpr int COUNT = 16 / sizeof(typename T::Storage);
  const int64_t elements = a.centres_each * a.k * a.channels;
  require(elements < int64_t{1} << 31, "a cloud must have fewer than 2^31 grouped elements");
  if (elements == 0 || a.clouds == 0) return;
  if (is_packed(a, sizeof(typename T::Storage)))
    ATTRDROP_LAUNCH((group_points_kernel<T, COUNT>), cloud_grid(elements / COUNT, a.clouds), GROUP_THREADS, 0, stream, a);
  else
    ATTRDROP_LAUNCH((group_points_kernel<T, 1>), cloud_grid(elements, a.clouds), GROUP_THREADS, 0, stream, a);
}

inline void launch_group_points(const GroupProblem& a, Stream stream) {
  if (a.points.type == Dtype::f32) launch_group_points<F32>(a, stream);
  else if (a.points.type == Dtype::bf16) launch_group_points<Bf16>(a, stream);
  else launch_group_points<F16>(a, stream);
}

inline void launch_scatter_points(const ScatterProblem& a, Stream stream) {
  const int64_t elements = int64_t{a.size} * a.channels;
  require(elements < int64_t{1} << 31 && a.centres_each * a.k < int64_t{1} << 31,
          "a cloud must have fewer than 2^31 elements and rows");
  if (elements == 0 || a.clouds == 0) return;
  const dim3 grid = cloud_grid(elements, a.clouds);
  if (a.type == Dtype::f32) ATTRDROP_LAUNCH(scatter_points_kernel<F32>, grid, GROUP_THREADS, 0, stream, a);
  else if (a.type == Dtype::bf16) ATTRDROP_LAUNCH(scatter_points_kernel<Bf16>, grid, GROUP_THREADS, 0, stream, a);
  else ATTRDROP_LAUNCH(scatter_points_kernel<F16>, grid, GROUP_THREADS, 0, stream, a);
}

}  // namespace attrdrop
