// torch's current stream without linking libtorch_cuda.
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

// The device of a tensor, current while this lives, and its current stream.
struct DeviceScope {
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : device(tensor.get_device_index()), guard(device), stream(current_stream(device)) {}
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

}  // namespace attrdrop
