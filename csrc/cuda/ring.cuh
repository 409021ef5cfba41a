// A ring of slots in global memory that some blocks of a launch fill and others read, side by side.
//
// Blocks take tickets. A step of fills + reads tickets fills item `step` and reads item `step - lag`; as lag < slots, a
// block waits only for lower tickets, whose blocks run or have ended: so no order of the blocks can lock.
#pragma once
#include "cuda/launch.h"

namespace attrdrop {

// What a block does: part `part` of filling or reading an item; `round`: how many items had the slot before.
struct RingTurn {
  unsigned item, slot, round;
  int part;
  bool is_fill;
};

struct Ring {
  unsigned* counters;  // the next ticket, fills (slots), reads (slots): all zero before the launch
  int slots, lag;
  int fills, reads;  // parts of an item, each the work of one block
  unsigned items;

  int64_t tickets() const { return (int64_t{items} + lag) * (fills + reads); }
  static int64_t counter_bytes(int slots) { return (1 + 2 * int64_t{slots}) * static_cast<int64_t>(sizeof(unsigned)); }

  // One thread of a block calls it. At either end there are turns without an item: theirs is not below `items`.
  __device__ __forceinline__ RingTurn next_turn() const {
    const unsigned ticket = atomicAdd(counters, 1u), step = ticket / (fills + reads);
    const int part = static_cast<int>(ticket % (fills + reads));
    const bool is_fill = part < fills;
    const unsigned item = is_fill ? step : step - lag;
    return {item, item % slots, item / slots, is_fill ? part : part - fills, is_fill};
  }

  // All threads of a block call the rest. They wait until the last item of the slot was read...
  __device__ __forceinline__ void wait_until_free(const RingTurn& turn) const {
    wait(counters + 1 + slots + turn.slot, turn.round * reads);
  }
  // ... or until this one is filled.
  __device__ __forceinline__ void wait_until_filled(const RingTurn& turn) const {
    wait(counters + 1 + turn.slot, (turn.round + 1) * fills);
  }
  __device__ __forceinline__ void end_fill(const RingTurn& turn) const { add(counters + 1 + turn.slot); }
  __device__ __forceinline__ void end_read(const RingTurn& turn) const { add(counters + 1 + slots + turn.slot); }

 private:
  __device__ __forceinline__ static void wait(const unsigned* counter, unsigned wanted) {
    if (threadIdx.x == 0)
      while (load_acquire(counter) < wanted) pause();
    __syncthreads();
  }
  __device__ __forceinline__ static void add(unsigned* counter) {
    __syncthreads();
    if (threadIdx.x == 0) add_release(counter);
  }

#if defined(__CUDACC__)
  __device__ __forceinline__ static unsigned load_acquire(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
  }
  __device__ __forceinline__ static void add_release(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
  __device__ __forceinline__ static void pause() { __nanosleep(100); }
#else
  static unsigned load_acquire(const unsigned* counter) { return *counter; }
  static void add_release(unsigned* counter) { ++*counter; }
  static void pause() { emulator::fail("a block waits for one that runs after it", emulator::Site::current()); }
#endif
};

// As many slots as fit, and what is read so far behind that neither side waits for the other.
inline Ring make_ring(unsigned items, int fills, int reads, int64_t slots) {
  const int count = static_cast<int>(slots < 2 ? 2 : slots > items ? items > 2 ? items : 2 : slots);
  return {nullptr, count, (count + 1) / 2, fills, reads, items};
}

}  // namespace attrdrop
