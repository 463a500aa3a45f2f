# network.WLAN as far as a station needs it. The board's sockets are this machine's: a station that is not connected does not stop them.
STA_IF, AP_IF = 0, 1
STAT_IDLE, STAT_GOT_IP, STAT_NO_AP_FOUND = 1000, 1010, 201


class WLAN:
    IF_STA, IF_AP = STA_IF, AP_IF
    _active = False
    _joined = None

    def __init__(self, interface=STA_IF):
        if interface != STA_IF:
            raise ValueError("this board has a station only")

    def active(self, on=None):
        if on is None:
            return WLAN._active
        WLAN._active = bool(on)
        if not on:
            WLAN._joined = None

    def connect(self, ssid=None, key=None, *, bssid=None):
        if not WLAN._active:
            raise OSError("Wifi Not Started")
        if not ssid or len(ssid) > 32 or key and len(key) > 64:
            raise ValueError("Wifi Invalid Argument")
        WLAN._joined = ssid
        print("wifi: joined", ssid)

    def disconnect(self):
        WLAN._joined = None

    def isconnected(self):
        return WLAN._joined is not None

    def status(self, what=None):
        if what == "rssi":
            return -60
        return STAT_GOT_IP if WLAN._joined else STAT_IDLE

    def ifconfig(self):
        return ("127.0.0.1", "255.0.0.0", "0.0.0.0", "127.0.0.1") if WLAN._joined else ("0.0.0.0",) * 4
