// Runs CUDA kernels on the host, for tests: one fiber per CUDA thread, blocks one after another, threads in an order that
// a seed decides. Says nothing about speed or about memory ordering between blocks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace attrdrop::emulator {

// Seed 0 runs threads in order; any other seed shuffles threads, warps and blocks. Every mistake that is noticed ends the
// launch with std::runtime_error.
struct Stream {
  uint64_t seed;
};

struct Launch {
  dim3 grid, block;
  size_t shared;  // bytes of dynamic shared memory
  Stream stream;
};

void run(const Launch& launch, const char* name, const std::function<void()>& kernel);

// What a running thread sees.
dim3 thread_index();
dim3 block_index();
dim3 block_dim();
dim3 grid_dim();
int lane();
void* dynamic_shared();
void* static_shared(const void* key, size_t bytes);  // one object per block and key, poisoned at the start of the block

using Site = std::source_location;

[[noreturn]] void fail(const char* message, Site site = Site::current());
void block_barrier(Site site = Site::current());

// A collective of the lanes in `mask`. The last one to arrive runs combine over the arguments of all 32 lanes (null where
// the mask has no bit), then all go on.
using Combine = void (*)(void* const* arguments);
void collective(uint32_t mask, void* argument, Combine combine, Site site);

// An asynchronous copy of `bytes` <= 16 bytes and zeros up to 16. It lands at once or only in async_wait, as the seed has
// it.
void async_copy(void* shared, const void* global, int bytes, Site site);
void async_commit();
void async_wait(int groups_in_flight);

}  // namespace attrdrop::emulator
