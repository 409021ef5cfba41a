// Launching a kernel on torch's current stream without linking libtorch_cuda.
#pragma once
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace attrdrop {

// The symbol lives in libtorch_cuda; a direct reference would break the import beside a CPU-only torch, and a weak one
// stays null because torch loads the library with RTLD_LOCAL.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    constexpr const char* name = "aoti_torch_get_current_cuda_stream";
    void* symbol = dlsym(RTLD_DEFAULT, name);
    if (!symbol)
      if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, name);
    return reinterpret_cast<Getter>(symbol);
  }();
  STD_TORCH_CHECK(getter, "this torch has no CUDA support");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace attrdrop

// Runs kernel<<<grid, block, shared>>>(...) on the device and current stream of `tensor`.
#define ATTRDROP_LAUNCH(kernel, grid, block, shared, tensor, ...)                                   \
  do {                                                                                              \
    const int32_t device = (tensor).get_device_index();                                             \
    const torch::stable::accelerator::DeviceGuard guard(device);                                    \
    kernel<<<grid, block, shared, attrdrop::current_stream(device)>>>(__VA_ARGS__);                 \
    const cudaError_t status = cudaGetLastError();                                                  \
    STD_TORCH_CHECK(status == cudaSuccess, #kernel ": ", cudaGetErrorString(status));               \
  } while (false)
