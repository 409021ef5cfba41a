// What a kernel header needs besides the language: nvcc's runtime, or the emulator where a host compiler reads it.
#pragma once
#include "require.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <torch/headeronly/util/Exception.h>

namespace attrdrop {
using Stream = cudaStream_t;

inline void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

inline void clear_memory(void* memory, int64_t bytes, Stream stream) {
  check_cuda(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream), "clear_memory");
}
}  // namespace attrdrop

#define ATTRDROP_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define ATTRDROP_SHARED(type, name, count) __shared__ type name[count]

// Runs kernel<<<grid, block, shared, stream>>>(...). More than 48 KiB of shared memory must be asked for.
#define ATTRDROP_LAUNCH(kernel, grid, block, shared, stream, ...)                                             \
  do {                                                                                                        \
    const auto launched = kernel;                                                                             \
    if ((shared) > 48 * 1024)                                                                                 \
      attrdrop::check_cuda(                                                                                   \
          cudaFuncSetAttribute(launched, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), #kernel); \
    launched<<<grid, block, shared, stream>>>(__VA_ARGS__);                                                   \
    attrdrop::check_cuda(cudaGetLastError(), #kernel);                                                        \
  } while (false)
#else
#include "emulator/cuda.h"

namespace attrdrop {
using Stream = emulator::Stream;

inline void clear_memory(void* memory, int64_t bytes, Stream) { memset(memory, 0, static_cast<size_t>(bytes)); }
}  // namespace attrdrop

#define ATTRDROP_LAUNCH(kernel, grid, block, shared, stream, ...) \
  attrdrop::emulator::run({grid, block, static_cast<size_t>(shared), stream}, #kernel, [&] { (kernel)(__VA_ARGS__); })
#endif
