/* What a product may change at build time: make -C bootloader CONFIG="-DDFU_MAX_CRASHES=5 ..." */
#ifndef DFU_CONFIG_H
#define DFU_CONFIG_H
#ifndef DFU_RECOVERY_PIN
#define DFU_RECOVERY_PIN 9 /* held low for DFU_RECOVERY_MS after a reset: recovery. -1: no pin */
#endif
#ifndef DFU_RECOVERY_WINDOW_MS
#define DFU_RECOVERY_WINDOW_MS 1000 /* after power-on and EN, where the mask ROM takes a boot strap that is low already: so long to press it */
#endif
#ifndef DFU_RECOVERY_MS
#define DFU_RECOVERY_MS 1000
#endif
#ifndef DFU_WATCHDOG_MS
#define DFU_WATCHDOG_MS 9000 /* from the start of the application until it feeds or disables the RTC watchdog */
#endif
#ifndef DFU_GOODBYE_US
#define DFU_GOODBYE_US 20000 /* for a USB host to fetch the end of the last answer before the reset */
#endif
#endif
