// Chooses the instruction-set variant once, at the first call.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace attrdrop {

#define ATTRDROP_DECLARE(isa_name)                                                                               \
  namespace isa_name {                                                                                           \
  int64_t keep_mask_scratch(const KeepMaskProblem&);                                                             \
  void keep_mask(const KeepMaskProblem&, int64_t, int64_t, void*, Counts&);                                      \
  void bernoulli(const Draw&, int64_t, int64_t, int64_t, uint32_t*);                                             \
  int64_t attention_scratch(const AttentionProblem&, Walk);                                                      \
  void pack_keys(const AttentionProblem&, Walk, void*);                                                          \
  void attention(const AttentionProblem&, int64_t, int64_t, void*);                                              \
  void attention_backward(const AttentionBackwardProblem&, int64_t, int64_t, void*, Counts&);                    \
  int64_t padded_width(int64_t);                                                                                 \
  void write_rows(const Matrix&, int64_t, int64_t, int64_t, const float*, int64_t, const float*);                \
  int64_t attribution_scratch(const AttributionProblem&);                                                        \
  void attribution(const AttributionProblem&, void*);                                                            \
  void gate(const GateProblem&, int64_t, int64_t);                                                               \
  void gate_backward(const GateBackwardProblem&, int64_t, int64_t);                                              \
  void pack_words(const PackProblem&, int64_t, int64_t);                                                         \
  void transpose_groups(const TransposeProblem&, int64_t, int64_t);                                              \
  void farthest_points(const SampleProblem&);                                                                    \
  void ball_query(const QueryProblem&);                                                                          \
  int64_t points_scratch(const PointProblem&);                                                                   \
  bool choose_points(const PointProblem&, int64_t, void*);                                                       \
  void replace_points(const PointProblem&, int64_t, uint32_t*);                                                  \
  const int64_t* gather_rows(const GroupProblem&, int64_t, int64_t);                                             \
  const int64_t* add_rows(const ScatterProblem&, int64_t, int64_t, int64_t, float*);                             \
  int64_t block_scratch(const BlockProblem&);                                                                    \
  bool choose_block(const BlockProblem&, int64_t, int64_t, void*);                                               \
  void fill_block(const BlockFill&, int64_t, const Box&);                                                        \
  static const Kernels table = {#isa_name, keep_mask_scratch, keep_mask, bernoulli, attention_scratch,           \
                                pack_keys, attention, attention_backward, padded_width, write_rows,              \
                                attribution_scratch, attribution, gate, gate_backward, pack_words,               \
                                transpose_groups, farthest_points, ball_query, points_scratch, choose_points,    \
                                replace_points, gather_rows, add_rows, block_scratch, choose_block,              \
                                fill_block};                                                                     \
  }

ATTRDROP_DECLARE(base)
#if defined(ATTRDROP_X86)
ATTRDROP_DECLARE(avx2)
ATTRDROP_DECLARE(avx512)

static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi");
}
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

static const Kernels& choose() {
  const char* wanted = std::getenv("ATTRDROP_ISA");
  const bool any = !wanted || !*wanted;
#if defined(ATTRDROP_X86)
  if (has_avx512() && (any || !std::strcmp(wanted, "avx512"))) return avx512::table;
  if (has_avx2() && (any || !std::strcmp(wanted, "avx2"))) return avx2::table;
#endif
  if (any || !std::strcmp(wanted, "base")) return base::table;
  throw std::runtime_error(std::string("ATTRDROP_ISA=") + wanted + " is not one of: " + available_isas());
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* available_isas() {
#if defined(ATTRDROP_X86)
  if (has_avx512()) return "base avx2 avx512";
  if (has_avx2()) return "base avx2";
#endif
  return "base";
}

}  // namespace attrdrop
