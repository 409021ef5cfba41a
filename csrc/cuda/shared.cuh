// Addresses in the shared memory of a block, as the instructions take them that read and write it by address.
#pragma once
#include "cuda/launch.h"

namespace attrdrop {

#if defined(__CUDACC__)
using SharedAddress = unsigned;
__device__ __forceinline__ SharedAddress shared_address(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}
#else
using SharedAddress = unsigned char*;
inline SharedAddress shared_address(void* place) { return static_cast<unsigned char*>(place); }
#endif

}  // namespace attrdrop
