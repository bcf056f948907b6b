# How a further CPU gets from real mode to where the boot CPU is.
#
# trampoline .. trampoline_end is copied to TRAMPOLINE, a page below 1 MiB, where the CPU starts
# with cs = page << 8, ip = 0. Nothing in it may refer to its own linked address. At 0x120 lie
# the words that the boot CPU fills in (smp.rs: Words):
#
#   +0   the physical address of boot.s's tables (the fifth or fourth level), which show the low 4 GiB at their own addresses
#        and the image where it is linked
#   +8   EFER: long mode, and no-execute if there is such a thing
#   +16  the root of the kernel's final table
#   +24  the end of the stack
#   +32  the CPU's area
#   +40  CR4: PAE, and the fifth level if the boot CPU uses it
#
# From real mode straight to long mode: protection and paging are switched on at once (Intel SDM
# volume 3, 10.8.5 has them one after the other, and does not forbid this).

.section .rodata.trampoline, "a"
.balign 16
.global trampoline
trampoline:
.code16
    cli
    cld
    xor eax, eax
    mov ds, ax
    mov eax, [{TRAMPOLINE} + 0x148]
    mov cr4, eax
    mov eax, [{TRAMPOLINE} + 0x120]
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, [{TRAMPOLINE} + 0x128]
    xor edx, edx
    wrmsr
    lgdt [{TRAMPOLINE} + 0x110]
    mov eax, 0x80010011                 # paging, write protection, protection; caches on
    mov cr0, eax
    .byte 0x66, 0xea                    # far jump to 64-bit code
    .long {TRAMPOLINE} + trampoline_long - trampoline
    .short 0x08

.code64
trampoline_long:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    mov ebx, {TRAMPOLINE} + 0x120
    movabs rax, offset other_cpu
    jmp rax

    .org trampoline + 0x100             # fixed places, for the code above
trampoline_gdt:
    .quad 0
    .quad 0x00209a0000000000            # 64-bit code
trampoline_gdt_pointer:
    .short 15
    .long {TRAMPOLINE} + 0x100
    .org trampoline + 0x120
.global trampoline_words
trampoline_words:
    .skip 48
.global trampoline_end
trampoline_end:

.section .text.smp, "ax"
.type other_cpu, @function
other_cpu:
    mov rdi, [rbx + 32]
    mov rsp, [rbx + 24]
    mov rax, [rbx + 16]
    mov cr3, rax                        # the low addresses are gone, the stack is there
    xor ebp, ebp
    call {OTHER_ENTRY}
    ud2
