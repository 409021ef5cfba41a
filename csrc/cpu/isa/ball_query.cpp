// ball_query of one centre: the points within a radius, in order, for several radii from the same distances.
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"
#include "points.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int VECTORS = CLOUD_BLOCK / LANES;

// The nearest point, of equals the first; 0 where there is no point.
static int64_t nearest_point(const QueryProblem& p) {
  int64_t found = -1;
  float nearest = 0;
  for (int64_t i = 0; i < p.cloud.size; ++i) {
    const float d = squared_distance(p.cloud.x[i] - p.x, p.cloud.y[i] - p.y, p.cloud.z[i] - p.z);
    if (found < 0 ? d == d : d < nearest) found = i, nearest = d;
  }
  return found < 0 ? 0 : found;
}

void ball_query(const QueryProblem& p) {
  const vfloat x = broadcast(p.x), y = broadcast(p.y), z = broadcast(p.z);
  for (int64_t scale = 0; scale < p.scales; ++scale) p.found[scale] = 0;
  int64_t open = p.scales;  // scales that have not all their points
  for (int64_t block = 0; block < p.cloud.size && open > 0; block += CLOUD_BLOCK) {
    vfloat distances[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t i = block + v * LANES;
      distances[v] = squared_distance(load<vfloat>(p.cloud.x + i) - x, load<vfloat>(p.cloud.y + i) - y,
                                      load<vfloat>(p.cloud.z + i) - z);
    }
    int64_t* out = p.out;
    for (int64_t scale = 0; scale < p.scales; out += p.k[scale++]) {
      int64_t found = p.found[scale];
      if (found == p.k[scale]) continue;
      const vfloat radius2 = broadcast(p.radius2[scale]);
      uint64_t within = 0;  // a bit for each point
      for (int v = 0; v < VECTORS; ++v)
        within |= static_cast<uint64_t>(at_most_bits(distances[v], radius2)) << (v * LANES);
      for (; within && found < p.k[scale]; within &= within - 1) out[found++] = block + __builtin_ctzll(within);
      open -= found == p.k[scale];
      p.found[scale] = found;
    }
  }
  int64_t* out = p.out;
  int64_t nearest = -1;
  for (int64_t scale = 0; scale < p.scales; out += p.k[scale++]) {
    if (p.found[scale] == 0 && nearest < 0) nearest = nearest_point(p);
    const int64_t rest = p.found[scale] > 0 ? out[0] : nearest;
    for (int64_t i = p.found[scale]; i < p.k[scale]; ++i) out[i] = rest;
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
