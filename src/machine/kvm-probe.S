/*
 * The last 512 bytes of a ROM that a processor starts in: real mode, protected mode, long mode with paging, then the work
 * that a kernel does from its first second on, which a host with half-working virtualization fails at or crawls through.
 * Ends with 0x2a on port 0xf4 (isa-debug-exit, exit status 0x55) when all went well, with 0x01 otherwise.
 *
 *   as --64 -o kvm-probe.o kvm-probe.S && ld -Ttext=0xffe00 --oformat=binary -o kvm-probe.bin kvm-probe.o
 */
	.set	ROM, 0xf0000		/* where real mode sees the ROM's last 64 KiB */
	.set	TABLES, 0x1000		/* page tables, 3 pages */
	.set	STACK, 0x8000
	.set	CELL, 0x9000		/* 16 bytes for cmpxchg16b */
	.set	ROUNDS, 640
	.set	STEPS, 65536		/* ROUNDS * STEPS = 42 million turns */

	.text
	.globl	_start
_start:
	.code16
real:
	cli
	cld
	lgdtl	%cs:(gdtr - ROM)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x08, $protected

	.code32
protected:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss

	/* one PML4, one PDPT, one page directory of 2 MiB pages: the first GiB as it is */
	movl	$TABLES, %edi
	xorl	%eax, %eax
	movl	$(3 * 1024), %ecx
	rep stosl
	movl	$(TABLES + 0x1003), TABLES
	movl	$(TABLES + 0x2003), TABLES + 0x1000
	movl	$(TABLES + 0x2000), %edi
	movl	$0x83, %eax
	movl	$512, %ecx
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	loop	1b

	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$TABLES, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	%cr0, %eax
	andl	$0x9fffffff, %eax	/* caches on: CD and NW off */
	orl	$0x80000000, %eax	/* PG */
	movl	%eax, %cr0
	ljmpl	$0x18, $long

	.code64
long:
	movl	$STACK, %esp
	movl	$CELL, %ebp
	movq	$0, (%rbp)
	movq	$0, 8(%rbp)
	movl	$ROUNDS, %esi
round:
	/* the cell counts the rounds: its halves must hold what the last round left */
	movl	$ROUNDS, %eax
	subl	%esi, %eax
	movl	%eax, %edx
	leal	1(%rax), %ebx
	movl	%ebx, %ecx
	lock cmpxchg16b (%rbp)
	jnz	failed
	cpuid
	invlpg	(%rbp)
	movl	$STEPS, %ecx
2:	pushq	%rcx
	popq	%rax
	decl	%ecx
	jnz	2b
	decl	%esi
	jnz	round

	cmpq	$ROUNDS, (%rbp)
	jne	failed
	movl	$0x2a, %eax
	jmp	report
failed:
	movl	$0x01, %eax
report:
	outl	%eax, $0xf4
3:	hlt
	jmp	3b

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08: 32-bit code */
	.quad	0x00cf93000000ffff	/* 0x10: data */
	.quad	0x00af9b000000ffff	/* 0x18: 64-bit code */
gdtr:
	.word	4 * 8 - 1
	.long	gdt

	/* the processor's first instruction, 16 bytes below the ROM's end */
	.org	0x1f0
	.code16
	jmp	real
	.org	0x200
