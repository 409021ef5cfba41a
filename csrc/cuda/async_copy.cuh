// cp.async: 16 bytes from global to shared memory, past the registers.
#pragma once
#include "cuda/shared.cuh"

namespace attrdrop {

#if defined(__CUDACC__)
// Copies `bytes` <= 16 bytes and fills the rest with zeros. Both addresses are aligned to 16 bytes.
__device__ __forceinline__ void async_copy(SharedAddress shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
// All 16 bytes, or zeros where not `is_there`: in fewer instructions.
__device__ __forceinline__ void async_copy_if(bool is_there, SharedAddress shared, const void* global) {
  asm volatile("{.reg .pred none; setp.eq.u32 none, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, none;}" ::"r"(shared),
               "l"(global), "r"(static_cast<unsigned>(is_there))
               : "memory");
}

// Closes the group of the copies since the last one.
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most IN_FLIGHT of this thread's groups have not landed. Other threads see them after a barrier.
template <int IN_FLIGHT>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
}
#else
inline void async_copy(SharedAddress shared, const void* global, int bytes, ATTRDROP_SITE) {
  emulator::async_copy(shared, global, bytes, site);
}
inline void async_copy_if(bool is_there, SharedAddress shared, const void* global, ATTRDROP_SITE) {
  emulator::async_copy(shared, global, is_there ? 16 : 0, site);
}
inline void async_commit() { emulator::async_commit(); }
template <int IN_FLIGHT>
void async_wait() {
  emulator::async_wait(IN_FLIGHT);
}
#endif

}  // namespace attrdrop
