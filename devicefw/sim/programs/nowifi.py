# A build of MicroPython that has lost its Wi-Fi. Start-up code of the image: boards that are flashed with a file system run theirs after it.
import network

del network.WLAN
