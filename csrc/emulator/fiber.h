// Stackful coroutines of one thread.
#pragma once
#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace attrdrop::emulator {

class Fiber {
 public:
  using Entry = void (*)();
  void start(Entry entry);  // to run from the next resume on; whatever ran before is abandoned
  void resume();            // runs the fiber until it suspends
  void suspend();           // called on the fiber: back to whoever resumed it

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t STACK = size_t{128} << 10;
#else
  static constexpr size_t STACK = size_t{64} << 10;
#endif
  static void enter();
  std::unique_ptr<unsigned char[]> stack_;
  Entry entry_ = nullptr;
#if defined(__x86_64__)
  void *fiber_ = nullptr, *caller_ = nullptr;  // stack pointers
#else
  ucontext_t fiber_, caller_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
  void* fake_stack_ = nullptr;
#endif
};

}  // namespace attrdrop::emulator
