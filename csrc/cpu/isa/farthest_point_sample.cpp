// farthest_point_sample of one cloud: a pass over all points for each point chosen.
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"
#include "points.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int CHAINS = 4;  // maxima that do not wait for each other
static_assert(CLOUD_BLOCK % (CHAINS * LANES) == 0, "a cloud is whole blocks");

// Lane by lane, the larger distance and, of equals, the lower index.
static inline void take_better(vfloat& best, vint& at, vfloat other, vint other_at) {
  const vint is_better = (other > best) | ((other == best) & (other_at < at));
  best = is_better ? other : best;
  at = is_better ? other_at : at;
}

// Takes a new point into `nearest`, and gives the first point that is now the farthest.
static int64_t farthest(const Cloud& cloud, int64_t chosen, float* nearest) {
  const vfloat x = broadcast(cloud.x[chosen]), y = broadcast(cloud.y[chosen]), z = broadcast(cloud.z[chosen]);
  vfloat best[CHAINS];
  vint at[CHAINS], lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  for (int c = 0; c < CHAINS; ++c) best[c] = broadcast(-__builtin_inff()), at[c] = lane + c * LANES;
  for (int64_t block = 0; block < cloud.size; block += CHAINS * LANES) {
    for (int c = 0; c < CHAINS; ++c) {
      const int64_t i = block + c * LANES;
      const vfloat d = squared_distance(load<vfloat>(cloud.x + i) - x, load<vfloat>(cloud.y + i) - y,
                                        load<vfloat>(cloud.z + i) - z);
      const vfloat before = load<vfloat>(nearest + i), now = d < before ? d : before;  // padding, NaN, stays -1
      store(nearest + i, now);
      const vint is_better = now > best[c];
      best[c] = is_better ? now : best[c];
      at[c] = is_better ? lane + static_cast<int32_t>(i) : at[c];
    }
  }
  for (int c = 1; c < CHAINS; ++c) take_better(best[0], at[0], best[c], at[c]);
  float farthest = best[0][0];
  int32_t index = at[0][0];
  for (int i = 1; i < LANES; ++i) {
    const bool is_better = best[0][i] > farthest || (best[0][i] == farthest && at[0][i] < index);
    farthest = is_better ? best[0][i] : farthest;
    index = is_better ? at[0][i] : index;
  }
  return index;
}

void farthest_points(const SampleProblem& p) {
  for (int64_t i = 0; i < p.cloud.size; ++i) p.nearest[i] = p.cloud.x[i] == p.cloud.x[i] ? __builtin_inff() : -1.0f;
  int64_t chosen = p.first;
  for (int64_t step = 0; step < p.n; ++step) {
    p.out[step] = chosen;
    if (step + 1 < p.n) chosen = farthest(p.cloud, chosen, p.nearest);
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
