# Four levels become five.
#
# The number of levels cannot change while paging is on, and paging cannot be off in 64-bit mode: so
# down to 32-bit code at its own physical address, paging off, fifth level on, and back. Meanwhile
# there is no stack, no memory operand and no handler: an NMI here would end the machine. Registers
# above 32 bits do not survive; what is needed afterwards lies in memory.
#
# Called once, on the boot CPU, on boot.s's tables, with interrupts off.

.section .text.levels, "ax"
.global boot_five_levels
.type boot_five_levels, @function
boot_five_levels:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + five_levels_stack], rsp
    sgdt [rip + five_levels_gdt]
    mov eax, offset boot_gdt_pointer    # a table that can be seen without paging
    lgdt [rax]
    push 0x10
    mov eax, offset five_levels_off
    push rax
    retfq

.section .boot.text, "ax"
.code32
five_levels_off:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, cr4
    or eax, 0x1000                      # LA57
    mov cr4, eax
    mov eax, offset boot_root_of_five - 0xffffffff80000000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000                  # EFER still asks for long mode
    mov cr0, eax
    .byte 0xea                          # far jump to 64-bit code
    .long five_levels_on
    .short 0x08
.code64
five_levels_on:
    movabs rax, offset five_levels_back
    jmp rax

.section .text.levels, "ax"
five_levels_back:
    mov rsp, [rip + five_levels_stack]
    lgdt [rip + five_levels_gdt]
    push {KERNEL_CODE}
    lea rax, [rip + 2f]
    push rax
    retfq
2:  pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.section .bss.levels, "aw", @nobits
.balign 8
five_levels_stack:
    .skip 8
five_levels_gdt:
    .skip 16
