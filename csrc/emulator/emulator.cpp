#include "emulator/emulator.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace attrdrop::emulator {

namespace {

// Shared memory between two red zones, which are looked at when a block ends, and by AddressSanitizer at once.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes) : bytes_((bytes + 15) / 16 * 16), exact_(bytes) {
    memory_.reset(static_cast<unsigned char*>(::operator new(bytes_ + 2 * ZONE, std::align_val_t(128))));
    std::memset(memory_.get(), MARK, bytes_ + 2 * ZONE);
    protect(true);
  }
  ~GuardedMemory() { protect(false); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void* data() const { return memory_.get() + ZONE; }
  bool contains(const void* p, size_t size) const {
    const auto* begin = static_cast<const unsigned char*>(p);
    return begin >= memory_.get() + ZONE && begin + size <= memory_.get() + ZONE + exact_;
  }
  void poison(unsigned char value) { std::memset(data(), value, exact_); }
  bool is_intact() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#else
    const auto is_marked = [](unsigned char c) { return c == MARK; };
    const unsigned char *begin = memory_.get(), *end = begin + bytes_ + 2 * ZONE;
    return std::all_of(begin, begin + ZONE, is_marked) && std::all_of(begin + ZONE + exact_, end, is_marked);
#endif
  }

 private:
  static constexpr size_t ZONE = 1024;
  static constexpr unsigned char MARK = 0xA5;
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t(128)); }
  };
  void protect([[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), bytes_ + 2 * ZONE);
    if (!on) return;
    ASAN_POISON_MEMORY_REGION(memory_.get(), ZONE);
    ASAN_POISON_MEMORY_REGION(memory_.get() + ZONE + exact_, bytes_ - exact_ + ZONE);
#endif
  }
  size_t bytes_, exact_;
  std::unique_ptr<unsigned char, Free> memory_;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  int bytes;
};

void land(const AsyncCopy& copy) {
  std::memset(copy.shared, 0, 16);
  std::memcpy(copy.shared, copy.global, copy.bytes);
}

struct Thread {
  Fiber fiber;
  dim3 index;
  unsigned linear;
  bool is_done, is_at_barrier;
  Site barrier;
  std::vector<AsyncCopy> open;             // issued, in no group yet
  std::deque<std::vector<AsyncCopy>> groups;  // committed, oldest first
};

struct Warp {
  uint32_t ready;    // lanes that can run
  uint32_t arrived;  // lanes waiting in the collective
  uint32_t mask;     // lanes it needs
  Combine combine;
  Site site;
  void* arguments[32];
};

struct StaticShared {
  const void* key;
  std::unique_ptr<GuardedMemory> memory;
};

struct Device {
  Launch launch;
  const std::function<void()>* kernel;
  std::mt19937_64 random;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<GuardedMemory> dynamic_memory;
  std::vector<StaticShared> static_memory;
  dim3 block_index;
  Thread* current = nullptr;
  std::string error;
  unsigned char poison = 0;
};

thread_local Device* device = nullptr;

std::string at(const Site& site) {
  const std::string file = site.file_name();
  return " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line()) + ")";
}

[[noreturn]] void stop(const std::string& message) {
  device->error = message;
  for (;;) device->current->fiber.suspend();
}

Warp& current_warp() { return device->warps[device->current->linear / 32]; }

void thread_main() {
  (*device->kernel)();
  Thread& self = *device->current;
  if (!self.open.empty() || !self.groups.empty()) stop("a thread ends with asynchronous copies that it never waited for");
  self.is_done = true;
  current_warp().ready &= ~(1u << lane());
  for (;;) self.fiber.suspend();
}

// The set bit that a random draw picks.
unsigned pick_bit(uint32_t bits, uint64_t draw) {
  for (unsigned skip = draw % std::popcount(bits); skip; --skip) bits &= bits - 1;
  return std::countr_zero(bits);
}

// A warp with a thread to run, or -1. Even seeds let one warp run as far ahead as it can, odd ones switch at every step.
int pick_warp(int last) {
  const auto& warps = device->warps;
  const uint64_t seed = device->launch.stream.seed;
  if (last >= 0 && seed % 2 == 0 && warps[last].ready) return last;
  const size_t first = seed ? device->random() % warps.size() : 0;
  for (size_t i = 0; i < warps.size(); ++i)
    if (const size_t w = (first + i) % warps.size(); warps[w].ready) return static_cast<int>(w);
  return -1;
}

// All threads wait: releases a complete barrier; false where the block is done. Everything else is a mistake.
bool release_barrier() {
  size_t waiting = 0, done = 0;
  for (const Thread& t : device->threads) waiting += t.is_at_barrier, done += t.is_done;
  if (done == device->threads.size()) return false;
  for (const Warp& warp : device->warps)
    if (warp.arrived) throw std::runtime_error("a warp collective waits for lanes that never come" + at(warp.site));
  const Thread* first = nullptr;
  for (const Thread& t : device->threads)
    if (t.is_at_barrier) {
      if (!first) first = &t;
      if (t.barrier.line() != first->barrier.line() || t.barrier.column() != first->barrier.column())
        throw std::runtime_error("divergent barrier: threads wait at different ones" + at(first->barrier) + at(t.barrier));
    }
  if (waiting != device->threads.size())
    throw std::runtime_error("divergent barrier: " + std::to_string(waiting) + " of " +
                             std::to_string(device->threads.size()) + " threads reach it" + at(first->barrier));
  for (Thread& t : device->threads) {
    t.is_at_barrier = false;
    device->warps[t.linear / 32].ready |= 1u << t.linear % 32;
  }
  return true;
}

void start_block(dim3 index) {
  Device& d = *device;
  d.block_index = index;
  d.poison = static_cast<unsigned char>(d.launch.stream.seed ? d.random() : 0xCD);
  d.dynamic_memory->poison(d.poison);
  for (StaticShared& s : d.static_memory) s.memory->poison(d.poison);
  for (Warp& warp : d.warps) warp = {};
  const dim3 size = d.launch.block;
  for (unsigned i = 0; i < d.threads.size(); ++i) {
    Thread& t = d.threads[i];
    t.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    t.linear = i;
    t.is_done = t.is_at_barrier = false;
    t.open.clear();
    t.groups.clear();
    t.fiber.start(&thread_main);
    d.warps[i / 32].ready |= 1u << i % 32;
  }
}

void run_block(dim3 index) {
  Device& d = *device;
  start_block(index);
  for (int warp = -1;;) {
    warp = pick_warp(warp);
    if (warp < 0) {
      if (release_barrier()) continue;
      break;
    }
    const unsigned lane = pick_bit(d.warps[warp].ready, d.launch.stream.seed ? d.random() : 0);
    d.current = &d.threads[32 * warp + lane];
    d.current->fiber.resume();
    if (!d.error.empty()) throw std::runtime_error(d.error);
  }
  bool intact = d.dynamic_memory->is_intact();
  for (const StaticShared& s : d.static_memory) intact &= s.memory->is_intact();
  if (!intact) throw std::runtime_error("a write past the end or before the begin of shared memory");
}

struct Restore {
  Device* before;
  ~Restore() { device = before; }
};

}  // namespace

void run(const Launch& launch, const char* name, const std::function<void()>& kernel) {
  const Restore restore{device};
  Device d{};
  d.launch = launch;
  d.kernel = &kernel;
  d.random.seed(launch.stream.seed);
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  if (blocks == 0 || threads == 0 || threads > 1024 || launch.grid.y > 65535 || launch.grid.z > 65535)
    throw std::runtime_error(std::string(name) + ": invalid launch configuration");
  d.threads = std::vector<Thread>(threads);
  d.warps.resize((threads + 31) / 32);
  d.dynamic_memory = std::make_unique<GuardedMemory>(launch.shared);
  device = &d;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  if (launch.stream.seed) std::shuffle(order.begin(), order.end(), d.random);
  const uint64_t nx = launch.grid.x, ny = launch.grid.y;
  try {
    for (const uint64_t i : order) run_block(dim3(i % nx, i / nx % ny, i / (nx * ny)));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(name) + ": " + error.what());
  }
}

dim3 thread_index() { return device->current->index; }
dim3 block_index() { return device->block_index; }
dim3 block_dim() { return device->launch.block; }
dim3 grid_dim() { return device->launch.grid; }
int lane() { return device->current->linear % 32; }
void* dynamic_shared() { return device->dynamic_memory->data(); }

void* static_shared(const void* key, size_t bytes) {
  for (const StaticShared& s : device->static_memory)
    if (s.key == key) return s.memory->data();
  device->static_memory.push_back({key, std::make_unique<GuardedMemory>(bytes)});
  device->static_memory.back().memory->poison(device->poison);
  return device->static_memory.back().memory->data();
}

void fail(const char* message, Site site) { stop(message + at(site)); }

void block_barrier(Site site) {
  Thread& self = *device->current;
  self.is_at_barrier = true;
  self.barrier = site;
  current_warp().ready &= ~(1u << lane());
  self.fiber.suspend();
}

void collective(uint32_t mask, void* argument, Combine combine, Site site) {
  Warp& warp = current_warp();
  const uint32_t mine = 1u << lane();
  if (!(mask & mine)) fail("a lane takes part in a warp collective whose mask leaves it out", site);
  if (!warp.arrived) {
    warp.mask = mask;
    warp.combine = combine;
    warp.site = site;
    for (void*& a : warp.arguments) a = nullptr;
  } else if (warp.mask != mask || warp.combine != combine || warp.site.line() != site.line()) {
    stop("lanes of a warp meet in different collectives" + at(warp.site) + at(site));
  }
  warp.arguments[lane()] = argument;
  warp.arrived |= mine;
  if (warp.arrived != mask) {
    warp.ready &= ~mine;
    device->current->fiber.suspend();
    return;
  }
  warp.arrived = 0;
  warp.ready |= mask;
  combine(warp.arguments);
}

void async_copy(void* shared, const void* global, int bytes, Site site) {
  bool is_inside = device->dynamic_memory->contains(shared, 16);
  for (const StaticShared& s : device->static_memory) is_inside |= s.memory->contains(shared, 16);
  if (!is_inside) fail("an asynchronous copy writes outside shared memory", site);
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16)
    fail("an asynchronous copy is not aligned to 16 bytes", site);
  if (bytes < 0 || bytes > 16) fail("an asynchronous copy takes 0 to 16 bytes", site);
  const AsyncCopy copy{shared, global, bytes};
  if (device->launch.stream.seed && device->random() % 2) return land(copy);
  device->current->open.push_back(copy);
}

void async_commit() {
  Thread& self = *device->current;
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void async_wait(int groups_in_flight) {
  auto& groups = device->current->groups;
  for (; groups.size() > static_cast<size_t>(groups_in_flight); groups.pop_front())
    for (const AsyncCopy& copy : groups.front()) land(copy);
}

}  // namespace attrdrop::emulator
