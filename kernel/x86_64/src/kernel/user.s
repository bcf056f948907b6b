# To user mode and back: one call that returns when the program has trapped.
#
#   enter_user(registers: rdi, by_sysret: esi)
#
# saves the caller's registers on the kernel stack, remembers the stack in the CPU's area and in the
# TSS, loads the program's registers and leaves by `sysretq` or `iretq`. Every way back (system call
# below, exceptions and interrupts in trap.s) stores the program's registers where area.user_regs
# points, the cause in area.vector, and jumps to leave_user, which returns to enter_user's caller.
#
# Between swapgs and the change of rsp nothing can fault and interrupts are off. NMI and machine
# check have stacks of their own and set GS themselves (trap.s).

.section .text.user, "ax"

.balign 16
.global enter_user
.type enter_user, @function
enter_user:
    push rbp
    mov rbp, rsp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov gs:[{KERNEL_RSP}], rsp
    mov gs:[{TSS_RSP0}], rsp
    mov gs:[{USER_REGS}], rdi

    cmp byte ptr gs:[{FSGSBASE}], 0
    je 1f
    mov rax, [rdi + {FS_BASE}]
    wrfsbase rax
    mov rax, [rdi + {GS_BASE}]
    swapgs                              # from here on GS is the program's
    wrgsbase rax
    jmp 2f
1:  swapgs
2:
    mov rax, [rdi + {RAX}]
    mov rbx, [rdi + {RBX}]
    mov rdx, [rdi + {RDX}]
    mov rbp, [rdi + {RBP}]
    mov r8, [rdi + {R8}]
    mov r9, [rdi + {R9}]
    mov r10, [rdi + {R10}]
    mov r12, [rdi + {R12}]
    mov r13, [rdi + {R13}]
    mov r14, [rdi + {R14}]
    mov r15, [rdi + {R15}]
    test esi, esi
    mov rsi, [rdi + {RSI}]
    jz 3f

    mov rcx, [rdi + {RIP}]              # checked by the caller: a user address
    mov r11, [rdi + {RFLAGS}]
    mov rsp, [rdi + {RSP}]
    mov rdi, [rdi + {RDI}]
    sysretq

3:  push {USER_DATA}
    push qword ptr [rdi + {RSP}]
    push qword ptr [rdi + {RFLAGS}]
    push {USER_CODE}
    push qword ptr [rdi + {RIP}]
    mov rcx, [rdi + {RCX}]
    mov r11, [rdi + {R11}]
    mov rdi, [rdi + {RDI}]
    iretq

# ---------------------------------------------------------------------------------------------
# SFMASK has cleared IF, DF, TF, AC, NT and IOPL. rcx = return address, r11 = flags; both are lost
# to the program, as they are on Linux.
.balign 16
.global syscall_entry
.type syscall_entry, @function
syscall_entry:
    swapgs
    mov gs:[{SCRATCH}], rsp
    mov rsp, gs:[{USER_REGS}]           # a pointer, not a stack: nothing is pushed
    mov [rsp + {RAX}], rax
    mov [rsp + {RBX}], rbx
    mov [rsp + {RCX}], rcx
    mov [rsp + {RDX}], rdx
    mov [rsp + {RSI}], rsi
    mov [rsp + {RDI}], rdi
    mov [rsp + {RBP}], rbp
    mov [rsp + {R8}], r8
    mov [rsp + {R9}], r9
    mov [rsp + {R10}], r10
    mov [rsp + {R11}], r11
    mov [rsp + {R12}], r12
    mov [rsp + {R13}], r13
    mov [rsp + {R14}], r14
    mov [rsp + {R15}], r15
    mov [rsp + {RIP}], rcx
    mov [rsp + {RFLAGS}], r11
    mov rax, rsp
    mov rcx, gs:[{SCRATCH}]
    mov [rax + {RSP}], rcx
    mov qword ptr gs:[{VECTOR}], {SYSCALL}
    mov rsp, gs:[{KERNEL_RSP}]
    jmp 5f                              # the flags are as the kernel wants them: SFMASK

# rax = the registers' place.
.global leave_user
.type leave_user, @function
leave_user:
    mov rsp, gs:[{KERNEL_RSP}]
    push 2                              # flags as the kernel wants them: DF, AC, NT clear, IF off
    popfq
5:  cmp byte ptr gs:[{FSGSBASE}], 0
    je 4f
    rdfsbase rcx
    mov [rax + {FS_BASE}], rcx
    swapgs
    rdgsbase rcx
    swapgs
    mov [rax + {GS_BASE}], rcx
4:  pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

# ---------------------------------------------------------------------------------------------
# switch_stacks(from: rdi, to: rsi): leaves what a call preserves on the stack, stores rsp at from,
# loads it from to. A stack made by new_context looks as if it had left from context_start - 1.
.balign 16
.global switch_stacks
.type switch_stacks, @function
switch_stacks:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, [rsi]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

# The first return on a new stack: r12 = function, r13 = argument, rbp = 0.
.global context_start
.type context_start, @function
context_start:
    mov rdi, r13
    call r12
    ud2
