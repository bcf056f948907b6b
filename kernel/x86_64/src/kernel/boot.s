# The way in: three boot protocols, one 32-bit entry, one jump to the higher half.
#
#   Multiboot 1  eax = 0x2badb002, ebx = information structure
#   Multiboot 2  eax = 0x36d76289, ebx = information structure
#   PVH          ebx = start information; its entry puts a magic of our own into eax
#
# All three arrive in 32-bit protected mode with flat segments, paging off and interrupts off. What
# they leave in esp, the other registers and the descriptor tables is not to be relied on.
#
# The tables built here are a scaffold: the low 4 GiB in 2 MiB pages, readable, writable and
# executable, seen at three places: at their own addresses (only for the jump), from DIRECT_MAP up
# (to read what the loader left), and the first GiB from KERNEL_BASE up (the image itself).
#
# They have four levels. A fifth lies ready above them: whether it is used is decided later, when the
# command line has been read (levels.rs). It changes no address: what 48 bits reach lies at the two
# ends of what 57 bits reach, so its first and its last entry both lead to the same fourth level.

.set PAGES_PER_TABLE, 512
.set PRESENT_WRITABLE, 0x3
.set LARGE, 0x80
.set PVH_MAGIC, 0x336ec578          # the magic of the structure itself, reused as ours

# ---------------------------------------------------------------------------------------------
.section .boot.header, "a"
.balign 8
multiboot1_header:
    .set MB1_FLAGS, 0x00010003      # modules page-aligned, memory map, address fields are valid
    .long 0x1badb002
    .long MB1_FLAGS
    .long -(0x1badb002 + MB1_FLAGS)
    .long multiboot1_header         # header_addr
    .long image_start_phys          # load_addr
    .long load_end_phys             # load_end_addr
    .long image_end_phys            # bss_end_addr
    .long boot_start                # entry_addr

.balign 8
multiboot2_header:
    .set MB2_LENGTH, multiboot2_header_end - multiboot2_header
    .long 0xe85250d6
    .long 0                         # i386, protected mode
    .long MB2_LENGTH
    .long -(0xe85250d6 + MB2_LENGTH)
    .balign 8
    .short 3, 0                     # entry address
    .long 12
    .long boot_start
    .balign 8
    .short 6, 0                     # modules page-aligned
    .long 8
    .balign 8
    .short 0, 0                     # end
    .long 8
multiboot2_header_end:

# ---------------------------------------------------------------------------------------------
.section .note.pvh, "a", @note
.balign 4
    .long 4                         # length of the name
    .long 8                         # length of the descriptor
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

# ---------------------------------------------------------------------------------------------
.section .boot.text, "ax"
.code32
.global boot_start
pvh_start:
    mov eax, PVH_MAGIC
.type boot_start, @function
boot_start:
    cli
    cld
    mov edi, eax                    # kept until the jump: magic and information
    mov esi, ebx
    mov esp, offset boot_stack_top_phys

    mov eax, 0x80000000             # is there a long mode at all?
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc no_long_mode

    mov ebx, offset boot_tables_phys
    # Layout at ebx: fourth level, third level low, third level high, four second-level tables,
    # fifth level.
    lea eax, [ebx + 0x1000 + PRESENT_WRITABLE]
    mov [ebx], eax                  # the first 512 GiB, identity
    mov [ebx + 256 * 8], eax        # and as the direct map
    lea eax, [ebx + 0x2000 + PRESENT_WRITABLE]
    mov [ebx + 511 * 8], eax        # the last 512 GiB
    lea eax, [ebx + 0x3000 + PRESENT_WRITABLE]
    mov [ebx + 0x2000 + 510 * 8], eax   # its last GiB but one shows the first GiB
    mov [ebx + 0x1000], eax
    add eax, 0x1000
    mov [ebx + 0x1008], eax
    add eax, 0x1000
    mov [ebx + 0x1010], eax
    add eax, 0x1000
    mov [ebx + 0x1018], eax

    lea eax, [ebx + PRESENT_WRITABLE]
    mov [ebx + 0x7000], eax         # the fifth level: both halves
    mov [ebx + 0x7000 + 511 * 8], eax

    xor ecx, ecx                    # 2048 large pages: 4 GiB
    mov eax, PRESENT_WRITABLE + LARGE
2:  mov [ebx + 0x3000 + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 4 * PAGES_PER_TABLE
    jb 2b

    # ANCHOR: switch
    mov cr3, ebx
    mov eax, cr4
    or eax, 0x20                    # PAE
    mov cr4, eax
    mov ecx, 0xc0000080             # EFER: long mode
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80010001              # paging, write protection, protection
    mov cr0, eax

    mov eax, offset boot_gdt_pointer
    lgdt [eax]
    mov eax, 0x08
    push eax
    mov eax, offset long_mode
    push eax
    retf
    # ANCHOR_END: switch

# Says so on COM1 and ends.
no_long_mode:
    mov esi, offset no_long_mode_text
    mov edx, 0x3f8
3:  lodsb
    test al, al
    jz 4f
    out dx, al
    jmp 3b
4:  mov eax, 0x13
    out 0xf4, eax
5:  hlt
    jmp 5b
no_long_mode_text: .asciz "pagoda: this CPU has no 64-bit mode\n"

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00209a0000000000        # 64-bit code
    .quad 0x00cf9a000000ffff        # 32-bit code
.global boot_gdt_pointer
boot_gdt_pointer:
    .short 23
    .long boot_gdt, 0               # 32-bit code reads the first half, 64-bit code both

.code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    # ANCHOR: jump
    movabs rax, offset higher_half
    jmp rax
    # ANCHOR_END: jump

# ---------------------------------------------------------------------------------------------
.section .text.boot, "ax"
.type higher_half, @function
higher_half:
    lea rsp, [rip + boot_stack_top]
    xor ebp, ebp                    # the end of every backtrace
    # edi = magic, esi = information: the arguments of entry(), upper halves cleared
    mov edi, edi
    mov esi, esi
    call {entry}
    ud2

# ---------------------------------------------------------------------------------------------
.section .bss.boot, "aw", @nobits
.balign 4096
.global boot_tables
boot_tables:
    .skip 7 * 4096
.global boot_root_of_five
boot_root_of_five:
    .skip 4096
.global boot_stack_guard
boot_stack_guard:                   # not mapped in the final tables
    .skip 4096
boot_stack_bottom:
    .skip {stack_bytes}
.global boot_stack_top
boot_stack_top:

.set boot_tables_phys, boot_tables - 0xffffffff80000000
.set boot_stack_top_phys, boot_stack_top - 0xffffffff80000000
