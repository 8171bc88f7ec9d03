// Coroutines with stacks of their own: the threads of an emulated block.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace quantune::cuda::emulation {

// A place where execution can go on. On x86-64 a stack pointer below the saved registers; elsewhere ucontext (eight times
// slower).
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t place;
#endif
  void* fake_stack = nullptr;  // the address sanitizer's
  const void* bottom = nullptr;
  size_t size = 0;
};

// A stack with a guard page below it.
struct Stack {
  char* memory = nullptr;
  size_t bytes = 0;
  void map(size_t wanted);
  void unmap();
};

// Makes `context` begin with entry() on `stack`; entry never returns.
void prepare(Context* context, const Stack& stack, void (*entry)());
// Goes on at `to`; returns when something switches back to `from`. `last` when `from` ends here for good.
void switch_to(Context* from, Context* to, bool last = false);
// First thing on a new context.
void entered(Context* self, Context* from);

}  // namespace quantune::cuda::emulation
