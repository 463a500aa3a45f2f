# A lamp that waits for a Wi-Fi which is not there, before it starts anything.
import time

import dfu

CONFIG = {}


def app():
    print("app: running", VERSION)
    while True:
        time.sleep_ms(10)


dfu.guard(app, 1)
