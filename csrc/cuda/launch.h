// What every CUDA launcher needs: torch's current stream on the tensor's device, and errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#ifdef DFKD_CPU_ONLY_TORCH
// Lives in libtorch_cuda.so. Weak, so that the binary links and loads beside a CPU-only torch; never weak in a real
// CUDA build, where the linker's --as-needed would then drop libtorch_cuda.so.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace dfkd::cuda {

inline void check(cudaError_t status) { STD_TORCH_CHECK(status == cudaSuccess, "CUDA: ", cudaGetErrorString(status)); }

// Makes the tensor's device current for its lifetime; `stream` is torch's current one there.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& x) : guard_(x.get_device_index()) {
#ifdef DFKD_CPU_ONLY_TORCH
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch is built without CUDA");
#endif
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  cudaStream_t stream = nullptr;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// In every lane, the same bits: partners are added in one fixed order.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// In every thread. `shared` holds one value per warp.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* shared) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x / 32); ++warp) total += shared[warp];
  __syncthreads();
  return total;
}

}  // namespace dfkd::cuda
