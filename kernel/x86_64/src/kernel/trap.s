# Where the CPU arrives in the kernel, other than by `syscall` (user.s).
#
# One 16-byte stub per vector pushes what is missing for a uniform frame:
#
#     rsp -> vector, error code, rip, cs, rflags, rsp, ss
#
# From user mode the CPU pushes its part to the end of the program's registers (core's UserRegs),
# where area.user_regs and the TSS point, except for the exceptions with stacks of their own. From
# there three ways lead on:
#
#   from user mode   what is needed is stored in the program's registers, and the handler runs on the
#                    thread's stack below where enter_user left it (user.s).
#   an exception     in the kernel: it may have come in one of the few places where GS is not the
#                    kernel's, so the GS base is set to what it must be, and put back afterwards.
#   an interrupt     in the kernel: only in idle, so GS is right and nothing is half done.

.section .text.trap, "ax"

.balign 16
.global trap_stubs
.type trap_stubs, @function
trap_stubs:
.irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63
    .balign 16
    .if \vector == 14
    jmp page_fault_entry
    .else
    .if \vector == 8 || \vector == 10 || \vector == 11 || \vector == 12 || \vector == 13 || \vector == 17 || \vector == 21 || \vector == 29 || \vector == 30
    .else
    push 0                              # the CPU pushes no error code for this one
    .endif
    push \vector
    jmp trap_entry
    .endif
.endr

# ---------------------------------------------------------------------------------------------
# A page fault. From user mode rsp = the program's registers + CODE: only what a function may change
# is stored; the rest stays where it is, and is stored if the handler asks for it.
.balign 16
.type page_fault_entry, @function
page_fault_entry:
    test byte ptr [rsp + 16], 3         # cs: privilege
    jz 1f
    swapgs
    mov [rsp + {RAX} - {CODE_WORD}], rax
    mov [rsp + {RCX} - {CODE_WORD}], rcx
    mov [rsp + {RDX} - {CODE_WORD}], rdx
    mov [rsp + {RSI} - {CODE_WORD}], rsi
    mov [rsp + {RDI} - {CODE_WORD}], rdi
    mov [rsp + {R8} - {CODE_WORD}], r8
    mov [rsp + {R9} - {CODE_WORD}], r9
    mov [rsp + {R10} - {CODE_WORD}], r10
    mov [rsp + {R11} - {CODE_WORD}], r11
    mov rsi, cr2                        # before anything else can fault
    mov rdx, [rsp]
    mov rsp, gs:[{KERNEL_RSP}]
    push 2                              # flags as the kernel wants them: DF, AC, NT clear, IF off
    popfq
    mov rdi, [rsp + {GATE_SERVER}]
    call [rsp + {GATE_FAULT}]
    test eax, eax
    jnz 2f

    mov rsp, gs:[{USER_REGS}]
    mov rax, [rsp + {RIP}]              # whoever interrupts the program there interrupts us
    mov gs:[{FAULT_RIP}], rax
    mov r11, [rsp + {R11}]
    mov r10, [rsp + {R10}]
    mov r9, [rsp + {R9}]
    mov r8, [rsp + {R8}]
    mov rdi, [rsp + {RDI}]
    mov rsi, [rsp + {RSI}]
    mov rdx, [rsp + {RDX}]
    mov rcx, [rsp + {RCX}]
    mov rax, [rsp + {RAX}]
    add rsp, {RIP}                      # the CPU's own frame, untouched
    swapgs
    iretq

1:  push 14
    jmp from_kernel

2:  mov rcx, gs:[{USER_REGS}]
    jmp store_kept

# ---------------------------------------------------------------------------------------------
# Everything else. The frame may be on a stack of the exception's own, and is copied then; where it
# lies in place already, the copy changes nothing.
.balign 16
.type trap_entry, @function
trap_entry:
    test byte ptr [rsp + 24], 3         # cs: privilege
    jz from_kernel

    swapgs
    mov gs:[{SCRATCH}], rax
    mov rax, gs:[{USER_REGS}]
    mov [rax + {RBX}], rbx
    mov [rax + {RCX}], rcx
    mov [rax + {RDX}], rdx
    mov [rax + {RSI}], rsi
    mov [rax + {RDI}], rdi
    mov [rax + {RBP}], rbp
    mov [rax + {R8}], r8
    mov [rax + {R9}], r9
    mov [rax + {R10}], r10
    mov [rax + {R11}], r11
    mov [rax + {R12}], r12
    mov [rax + {R13}], r13
    mov [rax + {R14}], r14
    mov [rax + {R15}], r15
    mov rcx, gs:[{SCRATCH}]
    mov [rax + {RAX}], rcx
    mov rcx, [rsp + 16]
    mov [rax + {RIP}], rcx
    mov rcx, [rsp + 32]
    mov [rax + {RFLAGS}], rcx
    mov rcx, [rsp + 40]
    mov [rax + {RSP}], rcx
    mov rsi, [rsp]                      # the vector
    mov rdx, [rsp + 8]                  # the error code
    mov rsp, gs:[{KERNEL_RSP}]
    push 2                              # flags as the kernel wants them: DF, AC, NT clear, IF off
    popfq
    xor ebp, ebp                        # the end of a backtrace
    mov rdi, [rsp + {GATE_SERVER}]
    call [rsp + {GATE_TRAP}]
    jmp go_on

# ---------------------------------------------------------------------------------------------
# Pushes all general registers in the order of trap::Frame.
.macro push_registers
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
.endm

.macro pop_registers
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
.endm

# Makes the trap look like a call from where it happened, so that the chain of frame pointers leads
# on through it; calls \handler with the stack aligned; comes back to the frame, kept in r13.
.macro call_handler handler
    mov r13, rsp
    and rsp, -16
    push qword ptr [r13 + 17 * 8]       # rip
    push rbp
    mov rbp, rsp
    call \handler
    mov rsp, r13
.endm

.type from_kernel, @function
from_kernel:
    push_registers
    cld
    cmp qword ptr [rsp + 15 * 8], 32    # the vector
    jae interrupt_in_kernel

    mov ecx, 0xc0000101                 # the GS base, as it was
    rdmsr
    mov ebx, eax
    mov r12d, edx
    sub rsp, 16
    sgdt [rsp]                          # the table of segments stands in the CPU's area
    mov rax, [rsp + 2]
    add rsp, 16
    sub rax, {GDT}
    mov rdx, rax
    shr rdx, 32
    wrmsr
    mov rdi, rsp
    mov rsi, cr2
    call_handler {EXCEPTION}
    mov ecx, 0xc0000101
    mov eax, ebx
    mov edx, r12d
    wrmsr
    pop_registers
    add rsp, 16
    iretq

.type interrupt_in_kernel, @function
interrupt_in_kernel:
    mov rdi, [rsp + 15 * 8]
    call_handler {INTERRUPT}
    pop_registers
    add rsp, 16
    iretq
