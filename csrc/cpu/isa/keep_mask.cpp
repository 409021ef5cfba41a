// keep_mask on one (sample, head): rank x y^T per row, find the threshold, draw, pack (Eq. 5 to 7 of AD-DROP).
#include "cpu/isa/bernoulli.h"
#include "cpu/isa/positions.h"
#include "cpu/isa/select_rows.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

struct Scratch : PositionScratch {
  uint32_t *valid, *dropped;
  RowScratch row;
};

// Carves the buffers out of `base`; with base null only the size counts.
static int64_t carve(const KeepMaskProblem& p, char* base, Scratch& s) {
  const int64_t words = word_count(p.n_k);
  Carver carver{base};
  carve(carver, p, s);
  carver.take(s.valid, BLOCK_ROWS * words);
  carver.take(s.dropped, BLOCK_ROWS * words);
  carve(carver, p.n_k, s.row);
  return carver.next - base;
}

int64_t keep_mask_scratch(const KeepMaskProblem& p) {
  Scratch unused;
  return carve(p, nullptr, unused);
}

void keep_mask(const KeepMaskProblem& p, int64_t begin, int64_t end, void* scratch, Counts& counts) {
  Scratch s;
  carve(p, static_cast<char*>(scratch), s);
  const int64_t words = word_count(p.n_k), stride = 32 * words;
  const bool has_bias = p.bias.data && !p.weight_lse;  // added to what is ranked
  const bool is_shared = !p.valid.is_causal && (!p.valid.data || p.valid.row_stride == 0);  // by all rows
  int32_t n_valid[BLOCK_ROWS] = {}, guess = 0;
  pack_operands(p, s);
  for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
    const int64_t rows = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS;
    int64_t active_words = 0;  // no column past them is valid in any of the rows
    bool dead[BLOCK_ROWS], any_alive = false;
    load_rows(p.x, row, p.n_q, p.d, s.x_block);
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t* valid = s.valid + r * words;
      if (row == begin || !is_shared) n_valid[r] = valid_words(p.valid, row + r, p.n_k, words, valid);
      for (int64_t w = words; w > active_words; --w)
        if (valid[w - 1]) active_words = w;
      // A row of zeros ties everywhere: nothing lies below its threshold.
      dead[r] = p.region == Region::high && !has_bias && all_zero(s.x_block + r * p.d, p.d);
      any_alive |= !dead[r] && n_valid[r] > 0;
    }
    if (any_alive) position_block(p, s, row, active_words, stride);
    bernoulli_words(p.draw, row, row + rows, words, s.dropped);
    for (int64_t r = 0; r < rows; ++r)
      select_row(p, s.row, row + r, s.values + r * stride, dead[r], s.valid + r * words, s.dropped + r * words, active_words,
                 n_valid[r], guess, counts);
  }
}

void bernoulli(const Draw& draw, int64_t begin, int64_t end, int64_t words, uint32_t* out) {
  bernoulli_words(draw, begin, end, words, out);
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
