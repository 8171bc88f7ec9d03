#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace quantune::cuda::emulation {

void Stack::map(size_t wanted) {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  bytes = (wanted + page - 1) / page * page;
  void* whole = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (whole == MAP_FAILED || mprotect(whole, page, PROT_NONE) != 0) {
    std::perror("emulation: no memory for the stack of a thread");
    std::abort();
  }
  memory = static_cast<char*>(whole) + page;
}

void Stack::unmap() {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (memory) munmap(memory - page, bytes + page);
  memory = nullptr;
}

#if defined(__x86_64__)

// Saves what the calling convention says a callee keeps, swaps the stacks, restores.
extern "C" void quantune_switch_stack(void** save, void* load);
asm(R"(
.text
.align 16
.hidden quantune_switch_stack
.globl quantune_switch_stack
.type quantune_switch_stack, @function
quantune_switch_stack:
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
.size quantune_switch_stack, .-quantune_switch_stack
)");

void prepare(Context* context, const Stack& stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack.memory + stack.bytes);
  *--top = nullptr;  // a return address that ends a debugger's walk, and the alignment that a called function expects
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context->stack_pointer = top;
  context->fake_stack = nullptr;
  context->bottom = stack.memory;
  context->size = stack.bytes;
}

static inline void jump(Context* from, Context* to) { quantune_switch_stack(&from->stack_pointer, to->stack_pointer); }

#else

void prepare(Context* context, const Stack& stack, void (*entry)()) {
  getcontext(&context->place);
  context->place.uc_stack.ss_sp = stack.memory;
  context->place.uc_stack.ss_size = stack.bytes;
  context->place.uc_link = nullptr;
  makecontext(&context->place, entry, 0);
  context->fake_stack = nullptr;
  context->bottom = stack.memory;
  context->size = stack.bytes;
}

static inline void jump(Context* from, Context* to) { swapcontext(&from->place, &to->place); }

#endif

void switch_to(Context* from, Context* to, bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, to->bottom, to->size);
  jump(from, to);
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#else
  static_cast<void>(last);
  jump(from, to);
#endif
}

void entered(Context* self, Context* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake_stack, &from->bottom, &from->size);
#else
  static_cast<void>(self);
  static_cast<void>(from);
#endif
}

}  // namespace quantune::cuda::emulation
