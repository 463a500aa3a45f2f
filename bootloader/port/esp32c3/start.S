# Entered by the mask ROM with interrupts off and a stack at 0x3fcde110; gp is the application's.
  .section .text.start, "ax"
  .globl _start
_start:
  .option push
  .option norelax
  la t0, __bss_start
  la t1, __bss_end
1:
  bgeu t0, t1, 2f
  sw zero, 0(t0)
  addi t0, t0, 4
  j 1b
2:
  .option pop
  tail boot_main
