// keep_mask, random_keep_mask and keep_scores on the CPU: one task per group of rows.
#include "cpu/keep_mask_problem.h"
#include "keep_mask_tensors.h"
#include "ops.h"

namespace attrdrop {

static void run_keep_mask(const KeepMaskArgs& args) {
  if (is_empty(args)) return;
  const Kernels& kernel = kernels();
  const RowTasks tasks(int64_t{args.batch} * args.heads, args.n_q);
  AtomicCounts total;
  torch::stable::parallel_for(0, tasks.count, 1, [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(kernel.keep_mask_scratch(head_problem(args, 0)));
    Counts counts{};
    for (int64_t task = begin; task < end; ++task)
      kernel.keep_mask(head_problem(args, tasks.head(task)), tasks.begin(task), tasks.end(task), scratch.get(), counts);
    total.add(counts);
  });
  total.write(args.counts);
}

KeepMaskTensors keep_mask_cpu(const Tensor& like, KeepMaskArgs args) {
  KeepMaskTensors made = new_keep_rows(like, args);
  run_keep_mask(args);
  return made;
}

KeepScoresTensors keep_scores_cpu(const Tensor& like, KeepMaskArgs args) {
  KeepScoresTensors made = new_keep_scores(like, args);
  run_keep_mask(args);
  return made;
}

}  // namespace attrdrop
