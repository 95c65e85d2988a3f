// gather_augment on the device, formula as in cpu/gather_augment.cpp; the pool may stay in pinned host memory.
//
// Each block stages a band of source rows in shared memory with 16-byte loads, since single bytes over PCIe cost a
// transaction each, and then writes the band of the output in the order of its memory.
#include <algorithm>

#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../layout.h"
#include "../ops.h"
#include "launch.h"

namespace dfkd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBandBytes = 16 << 10;
constexpr int kMaxRow = 32 << 10;

struct Shape {
  int64_t images;
  int height, width, channels;
  int band;  // output rows of one block

  __host__ __device__ int row() const { return width * channels; }
  __host__ __device__ int64_t image() const { return static_cast<int64_t>(height) * row(); }
};

template <typename T>
struct Arguments {
  const uint8_t* pool;
  const int64_t *indices, *shifts;
  const bool* flips;
  const float* table;  // [256, channels]
  T* out;
  int64_t pad;
  bool channels_last;
};

// Copies [begin, end), inside the pool [pool, pool_end), so that byte i of it lands at shared[i + the returned offset].
__device__ int stage(const uint8_t* pool, const uint8_t* pool_end, const uint8_t* begin, const uint8_t* end,
                     uint8_t* shared) {
  const int offset = static_cast<int>(reinterpret_cast<uintptr_t>(begin) % 16);
  const uint8_t* aligned = begin - offset;
  for (int i = 16 * threadIdx.x; i < end - aligned; i += 16 * kThreads) {
    const uint8_t* chunk = aligned + i;
    if (pool <= chunk && chunk + 16 <= pool_end) {
      *reinterpret_cast<uint4*>(shared + i) = *reinterpret_cast<const uint4*>(chunk);
    } else {
      for (int byte = 0; byte < 16; ++byte) {
        if (pool <= chunk + byte && chunk + byte < pool_end) shared[i + byte] = chunk[byte];
      }
    }
  }
  return offset;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(Arguments<T> args, Shape shape) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int64_t sample = blockIdx.x, index = args.indices[sample];
  const int first_row = blockIdx.y * shape.band, rows = min(shape.band, shape.height - first_row);
  const int dy = static_cast<int>(min(max(args.shifts[2 * sample], -args.pad), args.pad));
  const int dx = static_cast<int>(min(max(args.shifts[2 * sample + 1], -args.pad), args.pad));
  const bool flip = args.flips[sample], exists = 0 <= index && index < shape.images;
  // The source rows of this band that lie inside the image: neighbours in memory.
  const int source_begin = max(first_row + dy, 0), source_end = min(first_row + rows + dy, shape.height);
  const uint8_t* source = shared;
  if (exists && source_begin < source_end) {
    const uint8_t *image = args.pool + index * shape.image(), *pool_end = args.pool + shape.images * shape.image();
    source += stage(args.pool, pool_end, image + source_begin * shape.row(), image + source_end * shape.row(), shared);
  }
  __syncthreads();
  T* out = args.out + sample * shape.image();
  for (int i = threadIdx.x; i < rows * shape.row(); i += kThreads) {
    int y, x, c;
    if (args.channels_last) {
      c = i % shape.channels, x = i / shape.channels % shape.width, y = i / shape.row();
    } else {
      x = i % shape.width, y = i / shape.width % rows, c = i / (shape.width * rows);
    }
    const int row = first_row + y + dy, column = (flip ? shape.width - 1 - x : x) + dx;
    const bool inside = exists && source_begin <= row && row < source_end && 0 <= column && column < shape.width;
    const int value = inside ? source[(row - source_begin) * shape.row() + column * shape.channels + c] : 0;
    const int place =
        args.channels_last ? first_row * shape.row() + i : (c * shape.height + first_row + y) * shape.width + x;
    out[place] = static_cast<T>(args.table[value * shape.channels + c]);
  }
}

// Where the device sees the pool: its own memory, or pinned host memory through its device address.
const uint8_t* device_address(const Tensor& pool) {
  const uint8_t* pointer = data<uint8_t>(pool);
  if (pool.is_cuda()) return pointer;
  void* mapped = nullptr;
  const cudaError_t status = cudaHostGetDevicePointer(&mapped, const_cast<uint8_t*>(pointer), 0);
  if (status != cudaSuccess) cudaGetLastError();  // an unpinned pool is a mistake of the caller, not a sticky error
  STD_TORCH_CHECK(status == cudaSuccess, "pool: a CPU tensor must be pinned: ", cudaGetErrorString(status));
  return static_cast<const uint8_t*>(mapped);
}

}  // namespace

void gather_augment(const Tensor& pool, const Tensor& indices, const Tensor& shifts, const Tensor& flips,
                    const Tensor& table, int64_t pad, const Tensor& out) {
  const Launch launch(out);
  STD_TORCH_CHECK(pool.size(2) * pool.size(3) <= kMaxRow && pool.size(1) <= kMaxRow, "pool: an image of ", pool.size(1),
                  " rows of ", pool.size(2) * pool.size(3), " bytes; up to ", kMaxRow, " of each fit a block");
  const auto size = [&](int64_t dim) { return static_cast<int>(pool.size(dim)); };
  Shape shape{pool.size(0), size(1), size(2), size(3), 0};
  shape.band = std::clamp(kBandBytes / shape.row(), 1, shape.height);
  const int shared = shape.band * shape.row() + 32;  // and the bytes before and after that round it to 16
  const dim3 grid(static_cast<unsigned>(indices.size(0)),
                  static_cast<unsigned>((shape.height + shape.band - 1) / shape.band));
  const bool channels_last = layout_of(out).channels_last;
  dispatch_float(out, [&](auto zero) {
    using T = decltype(zero);
    const Arguments<T> args{device_address(pool),
                            data<int64_t>(indices),
                            data<int64_t>(shifts),
                            data<bool>(flips),
                            data<float>(table),
                            out.mutable_data_ptr<T>(),
                            pad,
                            channels_last};
    gather_kernel<T><<<grid, kThreads, shared, launch.stream>>>(args, shape);
  });
  check(cudaGetLastError());
}

}  // namespace dfkd::cuda
