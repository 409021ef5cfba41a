#include "emulator/fiber.h"

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the registers that a call must preserve on the stack at hand, then goes on with the other stack.
extern "C" void attrdrop_switch_stack(void** save, void* load);
asm(R"(
.text
.globl attrdrop_switch_stack
.hidden attrdrop_switch_stack
.type attrdrop_switch_stack, @function
attrdrop_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size attrdrop_switch_stack, .-attrdrop_switch_stack
)");
#endif

namespace attrdrop::emulator {

static thread_local Fiber* starting = nullptr;

void Fiber::enter() {
  Fiber* self = starting;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_size_);
#endif
  self->entry_();
}

void Fiber::start(Entry entry) {
  if (!stack_) stack_.reset(new unsigned char[STACK]);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_.get(), STACK);
  fake_stack_ = nullptr;
#endif
  entry_ = entry;
#if defined(__x86_64__)
  auto top = reinterpret_cast<uintptr_t>(stack_.get() + STACK) & ~uintptr_t{15};
  auto* frame = reinterpret_cast<void**>(top) - 8;  // six registers, where to return to, and a null caller of that
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&Fiber::enter);
  fiber_ = frame;
#else
  getcontext(&fiber_);
  fiber_.uc_stack.ss_sp = stack_.get();
  fiber_.uc_stack.ss_size = STACK;
  fiber_.uc_link = nullptr;
  makecontext(&fiber_, &Fiber::enter, 0);
#endif
}

void Fiber::resume() {
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_.get(), STACK);
#endif
#if defined(__x86_64__)
  attrdrop_switch_stack(&caller_, fiber_);
#else
  swapcontext(&caller_, &fiber_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, caller_stack_, caller_size_);
#endif
#if defined(__x86_64__)
  attrdrop_switch_stack(&fiber_, caller_);
#else
  swapcontext(&fiber_, &caller_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_size_);
#endif
}

}  // namespace attrdrop::emulator
