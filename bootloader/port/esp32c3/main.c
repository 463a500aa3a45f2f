/* ESP32-C3: registers and mask ROM around the core. Read next to boot.ld. */
#include "config.h"
#include "dfu.h"
#include "registers.h"
#include "wiring.h"

extern int rtc_get_reset_reason(int cpu);
extern int ets_printf(const char *format, ...);
extern void ets_delay_us(uint32_t us);
extern void uart_tx_wait_idle(uint8_t uart);
extern void software_reset(void) __attribute__((noreturn));
extern int esp_rom_spiflash_erase_sector(uint32_t number);
extern int esp_rom_spiflash_write(uint32_t address, const uint32_t *data, int32_t length);
extern int esp_rom_spiflash_read(uint32_t address, uint32_t *data, int32_t length);
extern int esp_rom_spiflash_config_param(uint32_t id, uint32_t size, uint32_t block, uint32_t sector, uint32_t page, uint32_t mask);
extern int esp_rom_spiflash_unlock(void);
extern void Cache_Invalidate_ICache_All(void);
extern uint32_t Cache_Disable_ICache(void);
extern void Cache_Enable_ICache(uint32_t autoload);
extern void ets_sha_enable(void);
extern int ets_sha_init(void *context, int type);
extern int ets_sha_starts(void *context, uint16_t t);
extern int ets_sha_update(void *context, const uint8_t *data, uint32_t length, bool update_context);
extern int ets_sha_finish(void *context, uint8_t *out);
#define SHA2_256 2
#define POWER_ON 1u /* the reset reason of power-on and of the EN pin */

#define SRAM 0x3fc80000u
#define SRAM_END 0x3fcce000u
#define IRAM_TO_DRAM (0x40380000u - 0x3fc80000u)
#define SCRATCH __attribute__((section(".scratch")))

static struct dfu_boot boot;
static struct dfu_zstd zstd SCRATCH;
static struct dfu_mapped mapped SCRATCH;
static uint8_t chunk[DFU_CHUNK_MAX] SCRATCH;
static uint32_t sector[DFU_SECTOR / 4]; /* not in SCRATCH: used before what a crash left there is read */
static uint32_t sha[54];                /* SHA_CTX, 216 bytes */
static bool usb;                        /* the line that spoke last */

/* The ROM wants words at word addresses on both sides. */
static int flash_read(void *ctx, uint32_t offset, void *buffer, uint32_t length) {
    uint8_t *out = buffer;
    uint32_t bounce[16];
    (void)ctx;
    while (length) {
        uint32_t skip = offset & 3, n;
        if (!skip && !((uintptr_t)out & 3) && length >= 4) {
            n = length & ~3u;
            if (esp_rom_spiflash_read(offset, (uint32_t *)(void *)out, (int32_t)n))
                return DFU_E_FLASH;
        } else {
            n = sizeof bounce - skip < length ? sizeof bounce - skip : length;
            if (esp_rom_spiflash_read(offset - skip, bounce, (int32_t)((skip + n + 3) & ~3u)))
                return DFU_E_FLASH;
            memcpy(out, (uint8_t *)bounce + skip, n);
        }
        out += n;
        offset += n;
        length -= n;
    }
    return DFU_OK;
}

/* Nothing below the state log is ever changed: bootloader, partition table, what is the application's. */
static int flash_program(void *ctx, uint32_t offset, const void *data, uint32_t length) {
    uint32_t bounce[16];
    (void)ctx;
    if (offset < DFU_STATE_AT)
        return DFU_E_FLASH;
    for (uint32_t n; length; length -= n) {
        const uint32_t *from = data;
        n = length;
        if ((uintptr_t)data & 3) {
            n = length < sizeof bounce ? length : sizeof bounce;
            memcpy(bounce, data, n);
            from = bounce;
        }
        if (esp_rom_spiflash_write(offset, from, (int32_t)n))
            return DFU_E_FLASH;
        offset += n;
        data = (const uint8_t *)data + n;
    }
    return DFU_OK;
}

static int flash_erase(void *ctx, uint32_t offset) {
    (void)ctx;
    return offset < DFU_STATE_AT || esp_rom_spiflash_erase_sector(offset / DFU_SECTOR) ? DFU_E_FLASH : DFU_OK;
}

static void sha_start(void *ctx) {
    (void)ctx;
    ets_sha_enable();
    ets_sha_init(sha, SHA2_256);
    ets_sha_starts(sha, 0);
}

static void sha_update(void *ctx, const void *data, uint32_t length) {
    (void)ctx;
    ets_sha_update(sha, data, length, true);
}

static void sha_finish(void *ctx, uint8_t digest[32]) {
    (void)ctx;
    ets_sha_finish(sha, digest);
}

static void print(void *ctx, const char *text) {
    (void)ctx;
    ets_printf("%s", text);
}

static void feed(void *ctx) {
    (void)ctx;
    REG(RTC_WDTWPROTECT) = WDT_KEY;
    REG(RTC_WDTFEED) = 1u << 31;
    REG(RTC_WDTWPROTECT) = 0;
}

static int get(void *ctx) {
    for (uint32_t ms = 0; ms < 1000; ms++) {
        if (REG(UART0_STATUS) & 0x3ff) {
            usb = false;
            return (int)(REG(UART0_FIFO) & 0xff);
        }
        if (REG(USB_EP1_CONF) & 4) {
            usb = true;
            return (int)(REG(USB_EP1) & 0xff);
        }
        feed(ctx);
        ets_delay_us(1000);
    }
    return -1;
}

static void put(void *ctx, uint8_t byte) {
    (void)ctx;
    for (uint32_t us = 0; us < 100000; us += 10) { /* a host that does not read must not stop the device */
        if (usb ? REG(USB_EP1_CONF) & 2 : (REG(UART0_STATUS) >> 16 & 0x3ff) < 128)
            break;
        if (usb)
            REG(USB_EP1_CONF) = 1;
        ets_delay_us(10);
    }
    REG(usb ? USB_EP1 : UART0_FIFO) = byte;
    if (usb && byte == 0xc0)
        REG(USB_EP1_CONF) = 1;
}

static void watchdog(uint32_t ms) {
    REG(RTC_WDTWPROTECT) = WDT_KEY;
    /* stage 0: 150 kHz cycles, of which the chip counts two for one (rwdt_ll_config_stage, EFUSE_WDT_DELAY_SEL 0) */
    REG(RTC_WDTCONFIG1) = ms * 150 / 2;
    /* enable, stage 0 resets chip and RTC, the longest reset pulses (bootloader_config_wdt, bootloader_init.c) */
    REG(RTC_WDTCONFIG0) = 1u << 31 | 4u << 28 | 7u << 16 | 7u << 13;
    REG(RTC_WDTFEED) = 1u << 31;
    REG(RTC_WDTWPROTECT) = 0;
}

/* The chip's revision, as major * 100 + minor (efuse_hal_chip_revision, efuse_ll.h). */
static uint32_t revision(void) {
    uint32_t high = REG(EFUSE_MAC_SPI_SYS_5);
    return (high >> 24 & 3) * 100 + (high >> 23 & 1) * 8 + (REG(EFUSE_MAC_SPI_SYS_3) >> 18 & 7);
}

/* The set-up and hold times that the ROM leaves at their reset values are too short for some flashes at 80 MHz. */
static void flash_lines(uint32_t spi, uint32_t hold) {
    REG(spi + SPI_CTRL) |= 1u << 3 | 1u << 18 | 1u << 19; /* bootloader_flash_set_dummy_out, bootloader_flash_config_esp32c3.c */
    REG(spi + SPI_USER) |= 1u << 6 | 1u << 7;             /* bootloader_flash_cs_timing_config, there */
    REG(spi + SPI_CTRL2) = (REG(spi + SPI_CTRL2) & ~0x3ffu) | hold << 5;
}

/* What the mask ROM leaves to the second stage. Seen in ESP-IDF v5.2.2's source; not seen on silicon. */
static void hardware_start(void) {
    /* bootloader_ana_reset_config, bootloader_esp32c3.c: a super watchdog that fires resets the chip; a clock glitch does from
     * revision 3 on (before, its detector is wrong) */
    REG(RTC_FIB_SEL) &= ~(1u << 0 | 1u << 2);
    if (revision() >= 3)
        REG(RTC_ANA_CONF) |= 1u << 20;
    else
        REG(RTC_ANA_CONF) &= ~(1u << 20);
    /* bootloader_clock_configure, bootloader_clock_init.c: nothing of the RTC's interrupts is left over */
    REG(RTC_INT_ENA) = 0;
    REG(RTC_INT_CLR) = ~0u;
    flash_lines(SPI0, 0);
    flash_lines(SPI1, 1);
    /* bootloader_super_wdt_auto_feed, bootloader_esp32c3.c */
    REG(RTC_SWD_WPROTECT) = SWD_KEY;
    REG(RTC_SWD_CONF) = (REG(RTC_SWD_CONF) & ~(1u << 17)) | 1u << 31; /* and bootloader_ana_super_wdt_reset_config */
    REG(RTC_SWD_WPROTECT) = 0;
    /* the timer group's flash-boot protection (bootloader_config_wdt, bootloader_init.c); the RTC's ends with watchdog() */
    REG(TIMG0_WDTWPROTECT) = WDT_KEY;
    REG(TIMG0_WDTCONFIG0) &= ~(1u << 14);
    REG(TIMG0_WDTWPROTECT) = 0;
    /* regi2c_ctrl_ll_i2c_reset, regi2c_ctrl_ll_i2c_bbpll_enable (rtc_clk_init.c): only the bootloader does this */
    REG(ANA_CONFIG) |= 0x3ffu << 8;
    REG(ANA_CONFIG) &= ~(1u << 17);
}

/* The ROM believes in 2 MB until it is told (bootloader_flash_update_id, bootloader_flash.c). Returns the size in bytes. */
static uint32_t flash_start(void) {
    uint32_t raw, size;
    REG(SPI1_W0) = 0;
    REG(SPI1_CMD) = SPI_FLASH_RDID;
    for (uint32_t i = 0; i < 100000 && REG(SPI1_CMD); i++)
        ;
    raw = REG(SPI1_W0) & 0xffffff;
    size = raw >> 16 & 0xff;
    size = size >= 18 && size <= 26 ? 1u << size : DFU_FLASH_MIN;
    esp_rom_spiflash_config_param((raw & 0xff) << 16 | (raw & 0xff00) | raw >> 16, size, 65536, 4096, 256, 0xffff);
    esp_rom_spiflash_unlock();
    return size;
}

/* A boot strap that is low at power-on never comes here: it is pressed afterwards, by a finger. */
static bool strapped(uint32_t reason) {
#if DFU_RECOVERY_PIN >= 0
    uint32_t window = reason == POWER_ON ? DFU_RECOVERY_WINDOW_MS / 10 : 0, held = 0;
    REG(IO_MUX(DFU_RECOVERY_PIN)) |= IO_MUX_PULL_UP | IO_MUX_INPUT;
    if (window)
        dfu_say(&boot, "recovery: press and hold pin ", DFU_RECOVERY_PIN);
    ets_delay_us(50);
    for (uint32_t now = 0; held < DFU_RECOVERY_MS / 10; now++) {
        if (!(REG(GPIO_IN) >> DFU_RECOVERY_PIN & 1))
            held++;
        else if (now >= window)
            return false;
        else
            held = 0;
        ets_delay_us(10000);
    }
    return true;
#else
    (void)reason;
    return false;
#endif
}

static bool is_mapped(const struct dfu_segment *s) {
    return s->size && ((s->address >= 0x42000000u && s->address < 0x50000000u) || (s->address >= 0x3c000000u && s->address < SRAM));
}

/* Load and map the image and enter it; the core has judged every address. */
static void __attribute__((noreturn)) enter(const struct dfu_image *image) {
    Cache_Disable_ICache();
    for (uint32_t i = 0; i < MMU_ENTRIES; i++)
        REG(MMU_TABLE + 4 * i) = MMU_INVALID;
    for (uint32_t i = 0; i < image->segments; i++) {
        const struct dfu_segment *s = &image->segment[i];
        if (is_mapped(s)) {
            uint32_t first = (s->address & 0x7fffff) >> 16, last = ((s->address & 0x7fffff) + s->size - 1) >> 16;
            for (uint32_t page = first; page <= last; page++)
                REG(MMU_TABLE + 4 * page) = (s->offset >> 16) + page - first;
            if (s->address < SRAM) /* ESP-IDF's start-up finds its own image through the last entry */
                REG(MMU_TABLE + 4 * (MMU_ENTRIES - 1)) = s->offset >> 16;
        } else if (s->size && s->address) {
            uint32_t to = s->address >= 0x40380000u && s->address < 0x50000000u ? s->address - IRAM_TO_DRAM : s->address;
            flash_read(NULL, s->offset, (void *)(uintptr_t)to, s->size);
        }
    }
    Cache_Invalidate_ICache_All();
    REG(ICACHE_CTRL1) &= ~3u;
    Cache_Enable_ICache(0);
    uart_tx_wait_idle(0);
    watchdog(DFU_WATCHDOG_MS);
    ((void (*)(void))(uintptr_t)image->entry)();
    software_reset();
}

void __attribute__((noreturn)) boot_main(void) {
    struct dfu_hw hw = {DFU_PORT_FUNCTIONS};
    struct dfu_crash crash = {
        .reason = (uint32_t)rtc_get_reset_reason(0),
        .store0 = REG(RTC_STORE0),
        .store6 = REG(RTC_STORE6),
        .sram = (uint32_t *)(uintptr_t)SRAM,
        .sram_address = SRAM,
        .sram_words = (SRAM_END - SRAM) / 4,
    };
    bool asked;
    if (crash.store0 >> 16 == 0xdf0c)
        REG(RTC_STORE0) = 0;
    hardware_start();
    watchdog(DFU_WATCHDOG_MS);
    hw.flash_size = flash_start();
    dfu_wire(&boot, &hw, sector, chunk, &zstd, &mapped);
    asked = strapped(crash.reason);
    if (dfu_boot(&boot, &crash) && !asked)
        enter(&boot.image);
    boot.reason = asked ? 2 : 1;
    dfu_recover(&boot, !asked);
    uart_tx_wait_idle(0); /* a reset would throw away the end of the last answer */
    ets_delay_us(DFU_GOODBYE_US);
    software_reset();
}
