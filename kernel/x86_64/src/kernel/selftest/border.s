# Programs of a few instructions, copied to a page that a program may execute. Each ends with a trap.
.section .rodata.border, "a"
.balign 16
.macro program name
    .global border_\name
    .balign 16
border_\name:
.endm

.global border_start
border_start:

program system_call
    syscall
    ud2

program read
    mov rax, [rdi]
    ud2

program write
    mov [rdi], rax
    ud2

program call
    jmp rdi

program endless
    jmp border_endless

program breakpoint
    int3
    ud2

program divide
    xor ecx, ecx
    div ecx
    ud2

program privileged
    cli
    ud2

program port
    in al, 0x60
    ud2

# DF, AC and NT set, then both ways in.
program flags
    pushfq
    or qword ptr [rsp], 0x44400
    popfq
    syscall
    int3

# A GS base that looks like the kernel's, then both ways in.
program kernel_gs
    wrgsbase rdi
    syscall
    int3

program bases
    mov rax, fs:[0]
    mov rbx, gs:[0]
    syscall

program calls
    syscall
    jmp border_calls

program nothing
    nop
    nop
    ud2

program set_xmm
    movq xmm7, rax
    syscall

program get_xmm
    movq rax, xmm7
    syscall

.global border_end
border_end:
