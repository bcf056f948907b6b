# To user mode and back.
#
#   enter_user(gate: rdi, registers: rsi)
#
# saves the caller's registers on the kernel stack, puts the gate (user.rs: Gate, five words) below
# them, and remembers in the CPU's area and in the TSS where that is and where the program's
# registers are. From then on every way in (system call below, exceptions and interrupts in trap.s)
# goes on right below the gate, calls one of its handlers, and leaves again. When the program does
# not go on, enter_user returns.
#
# A system call and a page fault store what a function may change; what a function preserves stays
# in its registers, and is stored (store_kept) when the handler asks for all registers.
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
    push [rdi + {GATE_WHOLE}]
    push [rdi + {GATE_TRAP}]
    push [rdi + {GATE_FAULT}]
    push [rdi + {GATE_CALL}]
    push [rdi + {GATE_SERVER}]
    mov gs:[{KERNEL_RSP}], rsp          # a multiple of 16
    mov gs:[{USER_REGS}], rsi
    add rsi, {REGS_BYTES}
    mov gs:[{TSS_RSP0}], rsi
    xor esi, esi
    jmp ask_whole

# ---------------------------------------------------------------------------------------------
# SFMASK has cleared IF, DF, TF, AC, NT and IOPL. rcx = return address, r11 = flags; both are lost
# to the program, as they are on Linux. The return address is canonical: the last page below the
# hole is never mapped.
.balign 16
.global syscall_entry
.type syscall_entry, @function
syscall_entry:
    swapgs
    mov gs:[{SCRATCH}], rsp
    mov rsp, gs:[{USER_REGS}]           # a pointer, not a stack: nothing is pushed
    mov [rsp + {RAX}], rax
    mov [rsp + {RDI}], rdi
    mov [rsp + {RSI}], rsi
    mov [rsp + {RDX}], rdx
    mov [rsp + {R10}], r10
    mov [rsp + {R8}], r8
    mov [rsp + {R9}], r9
    mov [rsp + {RIP}], rcx
    mov [rsp + {RFLAGS}], r11
    mov rcx, gs:[{SCRATCH}]
    mov [rsp + {RSP}], rcx
    mov rsp, gs:[{KERNEL_RSP}]
    mov rdi, [rsp + {GATE_SERVER}]
    call [rsp + {GATE_CALL}]
    mov rcx, gs:[{USER_REGS}]
    test eax, eax
    jnz 2f
    test dword ptr [rcx + {RFLAGS}], {NEEDS_IRET}
    jnz 2f

    mov rax, [rcx + {RAX}]
    mov rdi, [rcx + {RDI}]
    mov rsi, [rcx + {RSI}]
    mov rdx, [rcx + {RDX}]
    mov r10, [rcx + {R10}]
    mov r8, [rcx + {R8}]
    mov r9, [rcx + {R9}]
    mov r11, [rcx + {RFLAGS}]
    mov rsp, [rcx + {RSP}]
    mov rcx, [rcx + {RIP}]              # where the CPU came from
    swapgs
    sysretq

2:  mov rdi, [rcx + {RIP}]
    mov [rcx + {RCX}], rdi
    mov rdi, [rcx + {RFLAGS}]
    mov [rcx + {R11}], rdi

# rcx = the registers' place. Stores what a function preserves, and asks for the rest of the work.
.global store_kept
.type store_kept, @function
store_kept:
    mov [rcx + {RBX}], rbx
    mov [rcx + {RBP}], rbp
    mov [rcx + {R12}], r12
    mov [rcx + {R13}], r13
    mov [rcx + {R14}], r14
    mov [rcx + {R15}], r15
    xor ebp, ebp                        # the end of a backtrace
    mov esi, 1
# esi: are the bases the CPU's, not those in the registers' place?
ask_whole:
    mov rdi, [rsp + {GATE_SERVER}]
    call [rsp + {GATE_WHOLE}]

# eax: 0 the program does not go on, 1 it does, by iret, 2 by sysret. All of its registers are in
# their place, and have been checked.
.global go_on
.type go_on, @function
go_on:
    test eax, eax
    jz 3f
    mov rsp, gs:[{USER_REGS}]
    add rsp, {R15}
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop r10
    pop r9
    pop r8
    cmp eax, 2
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    je 4f
    add rsp, {RIP} - {RDI} - 8
    swapgs
    iretq

4:  mov rsp, [rsp + {RSP} - {RDI} - 8]
    swapgs
    sysretq                             # rcx and r11 are what rip and rflags are

3:  mov rsp, gs:[{KERNEL_RSP}]
    add rsp, 5 * 8                      # the gate
    pop r15
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
