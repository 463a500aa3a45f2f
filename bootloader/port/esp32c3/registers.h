/* Registers of the ESP32-C3 that the bootloader touches. Names and addresses: ESP-IDF v5.2.2,
 * components/soc/esp32c3/include/soc/{rtc_cntl,timer_group,extmem,spi_mem,uart,usb_serial_jtag,gpio,io_mux}_reg.h */
#ifndef DFU_REGISTERS_H
#define DFU_REGISTERS_H
#include <stdint.h>
#define REG(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define RTC_STORE0 0x60008050u
#define RTC_STORE6 0x600080c0u
#define RTC_ANA_CONF 0x60008034u /* bit 20: a clock glitch resets */
#define RTC_INT_ENA 0x60008040u
#define RTC_INT_CLR 0x6000804cu
#define RTC_FIB_SEL 0x6000810cu /* 0: glitch, 1: brown-out, 2: super watchdog: 0 gives it to the registers, 1 to the fuses */
#define RTC_WDTCONFIG0 0x60008090u
#define RTC_WDTCONFIG1 0x60008094u
#define RTC_WDTFEED 0x600080a4u
#define RTC_WDTWPROTECT 0x600080a8u
#define RTC_SWD_CONF 0x600080acu
#define RTC_SWD_WPROTECT 0x600080b0u
#define WDT_KEY 0x50d83aa1u
#define SWD_KEY 0x8f1d312au
#define TIMG0_WDTCONFIG0 0x6001f048u
#define TIMG0_WDTWPROTECT 0x6001f064u
#define ANA_CONFIG 0x6000e044u

#define MMU_TABLE 0x600c5000u
#define MMU_ENTRIES 128u
#define MMU_INVALID 0x100u
#define ICACHE_CTRL1 0x600c4004u

#define EFUSE_MAC_SPI_SYS_3 0x60008850u /* 20:18 chip revision, minor, low */
#define EFUSE_MAC_SPI_SYS_5 0x60008858u /* 23 minor, high; 25:24 major */

#define SPI0 0x60003000u
#define SPI1 0x60002000u
#define SPI_CTRL 0x08u  /* 3: drive the bus in the dummy phase, 18 and 19: polarity of Q and D */
#define SPI_CTRL2 0x10u /* 4:0 cycles of CS set-up, 9:5 of hold */
#define SPI_USER 0x18u  /* 6: CS hold, 7: CS set-up */
#define SPI1_CMD 0x60002000u
#define SPI1_W0 0x60002058u
#define SPI_FLASH_RDID (1u << 28)

#define UART0_FIFO 0x60000000u
#define UART0_STATUS 0x6000001cu /* 9:0 received bytes, 25:16 bytes to send */
#define USB_EP1 0x60043000u
#define USB_EP1_CONF 0x60043004u /* bit 0: send, 1: room, 2: received */

#define GPIO_IN 0x6000403cu
#define IO_MUX(pin) (0x60009004u + 4 * (pin))
#define IO_MUX_PULL_UP (1u << 8)
#define IO_MUX_INPUT (1u << 9)
#endif
