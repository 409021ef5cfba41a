// Statistics of dF/dA = dO V^T (Eq. 5), A or their product from eight rows at a time: sums over rows, or the k largest.
#include "cpu/isa/positions.h"
#include "cpu/isa/row_keys.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

struct AttributionScratch : PositionScratch {
  double* sums;
  int32_t* keys;
  int16_t* upper;
  uint32_t* valid;
  struct Entry* heap;
};

struct Entry {
  int32_t key;
  int64_t index;
  float value;
};

static int64_t carve(const AttributionProblem& p, char* base, AttributionScratch& s) {
  const int64_t n = padded(p.n_k);
  Carver carver{base};
  carve(carver, p, s);
  carver.take(s.sums, p.reduction == Reduction::sum ? n : 0);
  carver.take(s.keys, n);
  carver.take(s.upper, n);
  carver.take(s.valid, n / 32);
  carver.take(s.heap, p.reduction == Reduction::topk ? p.k : 0);
  return carver.next - base;
}

int64_t attribution_scratch(const AttributionProblem& p) {
  AttributionScratch unused;
  return carve(p, nullptr, unused);
}

// Larger value first, then the smaller index: a total order, so the result does not depend on the visit order.
static inline bool ranks_before(const Entry& a, const Entry& b) {
  return a.key != b.key ? a.key > b.key : a.index < b.index;
}

// Restores the heap whose root is the entry that ranks last.
static void sift_down(Entry* heap, int64_t size, int64_t at) {
  for (;;) {
    int64_t last = at;
    for (int64_t child = 2 * at + 1; child <= 2 * at + 2 && child < size; ++child)
      if (ranks_before(heap[last], heap[child])) last = child;
    if (last == at) return;
    const Entry moved = heap[at];
    heap[at] = heap[last];
    heap[last] = moved;
    at = last;
  }
}

static void offer(Entry* heap, int64_t& size, int64_t k, const Entry& entry) {
  if (size < k) {
    heap[size++] = entry;
    if (size == k)
      for (int64_t at = k / 2; at >= 0; --at) sift_down(heap, k, at);
  } else if (ranks_before(entry, heap[0])) {
    heap[0] = entry;
    sift_down(heap, k, 0);
  }
}

static void sort_heap(Entry* heap, int64_t size) {
  for (int64_t at = size / 2; at >= 0; --at) sift_down(heap, size, at);
  for (int64_t end = size - 1; end > 0; --end) {
    const Entry last = heap[0];
    heap[0] = heap[end];
    heap[end] = last;
    sift_down(heap, end, 0);
  }
}

void attribution(const AttributionProblem& p, void* scratch) {
  AttributionScratch s;
  carve(p, static_cast<char*>(scratch), s);
  const int64_t words = word_count(p.n_k), columns = 32 * words;
  int64_t found = 0;
  pack_operands(p, s);
  if (p.reduction == Reduction::sum)
    for (int64_t j = 0; j < columns; ++j) s.sums[j] = 0.0;
  for (int64_t begin = 0; begin < p.n_q; begin += BLOCK_ROWS) {
    if (!p.is_weight_alone) load_rows(p.x, begin, p.n_q, p.d, s.x_block);
    position_block(p, s, begin, words, columns);
    for (int64_t row = begin; row < begin + BLOCK_ROWS && row < p.n_q; ++row) {
      const float* values = s.values + (row - begin) * columns;
      valid_words(p.valid, row, p.n_k, words, s.valid);
      if (p.reduction == Reduction::topk) ordered_keys(values, s.valid, columns, false, s.keys, s.upper);
      for (int64_t w = 0; w < words; ++w) {
        uint32_t wanted = s.valid[w];
        if (p.reduction == Reduction::topk && found == p.k)
          wanted &= ~less_word(s.keys + 32 * w, s.heap[0].key);
        for (; wanted; wanted &= wanted - 1) {
          const int64_t j = 32 * w + __builtin_ctz(wanted);
          if (p.reduction == Reduction::sum)
            s.sums[j] += values[j];
          else
            offer(s.heap, found, p.k, {s.keys[j], row * p.n_k + j, values[j]});
        }
      }
    }
  }
  if (p.reduction == Reduction::sum) {
    for (int64_t j = 0; j < p.n_k; ++j) p.values[j] = static_cast<float>(s.sums[j]);
    return;
  }
  sort_heap(s.heap, found);
  for (int64_t i = 0; i < p.k; ++i) {
    p.values[i] = i < found ? s.heap[i].value : -__builtin_inff();
    p.indices[i] = i < found ? s.heap[i].index : -1;
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
