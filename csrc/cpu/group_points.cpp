// group_points and scatter_points on the CPU: rows are copied by all threads, and added up by one for each cloud.
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/clouds.h"
#include "ops.h"

namespace attrdrop {

constexpr int64_t SHORT_ROW = 16;  // elements: shorter rows are faster copied in a loop

// An index that is out of range, if any thread saw one.
class IndexCheck {
 public:
  explicit IndexCheck(int64_t limit) : limit_(limit) {}
  bool accepts(const int64_t& index) {
    const bool is_inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(limit_);
    if (!is_inside) outside_ = &index;
    return is_inside;
  }
  void raise() const {
    if (outside_) check_data(false, "index must lie in [0, ", limit_, "), got ", *outside_.load());
  }

 private:
  int64_t limit_;
  std::atomic<const int64_t*> outside_{nullptr};
};

// Calls run with the number of channels at compile time where they are coordinates alone, else with 0.
template <class Run>
static void with_channels(int64_t channels, Run run) {
  if (channels == 3) run(std::integral_constant<int64_t, 3>{});
  else run(std::integral_constant<int64_t, 0>{});
}

// The rows of one centre, from `points` of one cloud, less its coordinates where there is one.
template <int64_t FIXED, class T>
static void gather_rows(const PointView& view, const T* points, const int64_t* index, int64_t index_stride, int64_t k,
                        int64_t channels, const Point* centre, IndexCheck& check, T* out) {
  const float from[3] = {centre ? centre->x : 0, centre ? centre->y : 0, centre ? centre->z : 0};
  const int64_t count = FIXED ? FIXED : channels;
  for (int64_t j = 0; j < k; ++j, out += count) {
    const int64_t& i = index[j * index_stride];
    if (!check.accepts(i)) continue;
    const T* row = points + i * view.point;
    int64_t c = 0;
    for (; c < (FIXED || centre ? 3 : 0); ++c) out[c] = static_cast<T>(static_cast<float>(row[c * view.channel]) - from[c]);
    if (view.channel == 1 && count > SHORT_ROW) std::memcpy(out + c, row + c, sizeof(T) * (count - c));
    else for (; c < count; ++c) out[c] = row[c * view.channel];
  }
}

// points (N, P, C), index (N, S, k), centres (N, S, 3) -> (N, S, k, C)
Tensor group_points_cpu(Tensor points, Tensor index, std::optional<Tensor> centres) {
  check_group(points, index, centres);
  const PointView view = point_view(points, "points");
  const IndexView indices = index_view(index, points.size(0));
  const int64_t clouds = points.size(0), each = index.size(1), k = index.size(2), channels = points.size(2);
  const PointView from = centres ? point_view(*centres, "centres") : PointView{};
  Tensor grouped = torch::stable::new_empty(points, {clouds, each, k, channels});
  IndexCheck check(points.size(1));
  with_element(view.type, [&](auto element) {
    using T = decltype(element);
    auto* out = static_cast<T*>(grouped.mutable_data_ptr());
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, k * channels));
    with_channels(channels, [&](auto fixed) {
      torch::stable::parallel_for(0, clouds * each, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / each, s = i % each;
          const Point centre = centres ? read_point<T>(from, n, s) : Point{};
          gather_rows<fixed()>(view, static_cast<const T*>(view.data) + n * view.cloud,
                               indices.data + n * indices.cloud + s * indices.centre, indices.place, k, channels,
                               centres ? &centre : nullptr, check, out + i * k * channels);
        }
      });
    });
  });
  check.raise();
  return grouped;
}

// Adds the rows of one cloud to sums (P, width), channels [first, first + width), in the order of the index.
template <int64_t FIXED, class T>
static void add_rows(const RowView& rows, const IndexView& indices, int64_t n, int64_t each, int64_t k, int64_t first,
                     int64_t width, IndexCheck& check, float* sums) {
  const int64_t count = FIXED ? FIXED : width;
  for (int64_t s = 0; s < each; ++s)
    for (int64_t j = 0; j < k; ++j) {
      const int64_t& i = indices.data[n * indices.cloud + s * indices.centre + j * indices.place];
      if (!check.accepts(i)) continue;
      const T* row = static_cast<const T*>(rows.data) + n * rows.cloud + s * rows.centre + j * rows.place +
                     first * rows.channel;
      float* sum = sums + i * count;
      if (rows.channel == 1)
        for (int64_t c = 0; c < count; ++c) sum[c] += static_cast<float>(row[c]);
      else
        for (int64_t c = 0; c < count; ++c) sum[c] += static_cast<float>(row[c * rows.channel]);
    }
}

// grad (N, S, k, C), index (N, S, k) -> (N, size, C): the rows that belong to each point, added up. CUDA alone needs the
// order of the index.
Tensor scatter_points_cpu(Tensor grad, Tensor index, int64_t size, std::optional<Tensor>, std::optional<Tensor>) {
  const RowView rows = row_view(grad, index);
  const IndexView indices = index_view(index, grad.size(0));
  const Dtype type = kernel_dtype(grad, "grad");
  const int64_t clouds = grad.size(0), each = grad.size(1), k = grad.size(2), channels = grad.size(3);
  Tensor out = torch::stable::new_empty(grad, {clouds, size, channels});
  // clouds alone, or ranges of their channels too where threads would be idle
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = clouds > 0 ? (threads + clouds - 1) / clouds : 1;
  const int64_t width = std::max(SHORT_ROW, (channels + wanted - 1) / wanted);
  const int64_t parts = (channels + width - 1) / width;
  IndexCheck check(size);
  with_element(type, [&](auto element) {
    using T = decltype(element);
    torch::stable::parallel_for(0, clouds * parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> sums;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / parts, first = task % parts * width, share = std::min(width, channels - first);
        sums.assign(size * share, 0.0f);
        with_channels(channels, [&](auto fixed) {
          add_rows<fixed(), T>(rows, indices, n, each, k, first, share, check, sums.data());
        });
        T* target = static_cast<T*>(out.mutable_data_ptr()) + n * size * channels + first;
        for (int64_t i = 0; i < size; ++i)
          for (int64_t c = 0; c < share; ++c) target[i * channels + c] = static_cast<T>(sums[i * share + c]);
      }
    });
  });
  check.raise();
  return out;
}

}  // namespace attrdrop
