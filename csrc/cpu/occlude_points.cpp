// occlude_points_ on the CPU: clouds are shared out to threads; nothing is written before all relevance is checked.
#include <atomic>

#include "ops.h"
#include "point_occlusion_args.h"

namespace attrdrop {

// Writes the dropped points of one cloud; gone and kept have room for all its points.
template <class T>
static void replace_points(const PointProblem& p, int64_t cloud, uint32_t* gone, uint32_t* kept) {
  const bool* dropped = p.dropped + cloud * p.size;
  uint32_t drops = 0, stays = 0;
  for (uint32_t j = 0; j < p.size; ++j) {
    gone[drops] = kept[stays] = j;
    drops += dropped[j];
    stays += !dropped[j] && is_valid(p.valid, cloud, j);
  }
  const PointView& view = p.points;
  T* out = static_cast<T*>(const_cast<void*>(view.data)) + cloud * view.cloud;
  if (p.replacement == Replacement::number) {
    for (uint32_t i = 0; i < drops; ++i)
      for (int32_t c = 0; c < p.channels; ++c)
        out[gone[i] * view.point + c * view.channel] = constant_at<T>(p.constant, c);
    return;
  }
  const uint32_t sample = sample_of(p.sample_ids, cloud);
  Philox4 words{};
  uint32_t drawn = UINT32_MAX;  // the call that words are of
  if (stays == 0) kept = gone;  // the first of all valid points is its own replacement
  for (uint32_t i = 0; i < drops; ++i) {
    if (p.replacement == Replacement::resample && gone[i] / 4 != drawn) {
      drawn = gone[i] / 4;
      words = point_words(p.rule.seed, DRAW_RESAMPLE, sample, drawn);
    }
    const uint32_t from = kept[below(words.word[gone[i] % 4], stays)];
    for (int32_t c = 0; c < p.channels; ++c)
      out[gone[i] * view.point + c * view.channel] = out[from * view.point + c * view.channel];
  }
}

// points (N, P, C); relevance (N, P, c); valid (N, P); gives which were dropped (N, P).
Tensor occlude_points_cpu(Tensor points, std::optional<Tensor> relevance, std::optional<Tensor> valid, double alpha,
                          double beta, bool calibrated, int64_t norm, int64_t replacement, double value,
                          std::optional<Tensor> values, int64_t seed, std::optional<Tensor> sample_ids) {
  PointProblem p = point_problem(points, relevance, valid, alpha, beta, calibrated, norm, replacement, value, values, seed,
                                 sample_ids);
  Tensor dropped = new_dropped(points, p);
  const int64_t clouds = grain(16 * int64_t{p.size});  // a point costs as much as 16 elements that are copied
  std::atomic<bool> is_finite{true};
  torch::stable::parallel_for(0, p.count, clouds, [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(kernels().points_scratch(p));
    for (int64_t n = begin; n < end; ++n)
      if (!kernels().choose_points(p, n, scratch.get())) is_finite = false;
  });
  check_data(is_finite, "relevance must be finite");
  torch::stable::parallel_for(0, p.count, clouds, [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(2 * sizeof(uint32_t) * p.size);
    auto* gone = static_cast<uint32_t*>(scratch.get());
    for (int64_t n = begin; n < end; ++n)
      if (p.points.type == Dtype::f32) replace_points<uint32_t>(p, n, gone, gone + p.size);
      else replace_points<uint16_t>(p, n, gone, gone + p.size);
  });
  return dropped;
}

}  // namespace attrdrop
