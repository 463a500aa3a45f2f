"""The seam between the agent and the ways to reach dfud. A transport is a class with:

    __init__(config)                            nothing is sent yet
    async status(message, wait_s, buffer)       send a status, wait up to wait_s for something new;
                                                return how many bytes of command are in buffer, 0: nothing new
    async chunk(package, number, buffer)        fetch one chunk into buffer, return its length
    async enrol(message, buffer)                send an enrolment, return when it is accepted; only needed for a `claim`
    async close()                               may be called at any time
    retry_s                                     may be missing; after a TransportError: how long the server wants to be left alone
    rest()                                      may be missing; before much RAM is needed: free what the next call can make again

All three raise TransportError when the server cannot be reached, Denied when it does not accept the credentials, and chunk()
raises Gone when there is no such package any more. `transport` in the config chooses: "http" (the default), "coap",
"serial", or a class of yours.
"""

import binascii

from dfu.errors import Denied, Gone, TransportError  # noqa: F401  # for transports of yours


def address(url, ports):
    """Return scheme, host (an IPv6 one without its brackets) and port of a url. ports: the default one of each scheme. Raises ValueError."""
    scheme, _, place = url.partition("://")
    place = place[:-1] if place[-1:] == "/" else place
    host, mark, port = place.rpartition(":")
    if not mark or port[-1:] == "]":
        host, port = place, ""
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    try:
        number = int(port) if mark and port else ports[scheme]
        if bare and 0 < number < 65536 and (bare != host or ":" not in bare) and not set("/?#@[] ") & set(bare):
            return scheme, bare, number
    except (KeyError, ValueError):
        pass
    raise ValueError("url %s: expected %s://host:port, an IPv6 host in brackets, and no path" % (url, " or ".join(sorted(ports))))


def http_parts(config):
    """Return whether it is https, host, port, and the head lines of each request."""
    scheme, host, port = address(config["url"], {"http": 80, "https": 443})
    if scheme == "https" and len(config.get("pin") or config.get("ca") or b"") < 64:
        # Never in silence without a judge; a hash is none: stock MicroPython cannot show the server's certificate.
        raise ValueError("https needs a certificate: ca or pin")
    user = "%s@%s:%s" % (config["device"].replace("%", "%25").replace("@", "%40"), config["app"], config["secret"])
    head = b"Host: %s:%d\r\n" % (("[%s]" % host if ":" in host else host).encode(), port)
    head += b"Authorization: Basic " + binascii.b2a_base64(user.encode()).strip() + b"\r\n"
    return scheme == "https", host, port, head


def hardware_name(given):
    """Return a hardware's name as manifests have it: `ESP32-C3` and `esp32-c3-board1` are `esp32c3` and `esp32c3-board1`."""
    low = given.lower()
    for chip in ("c2", "c3", "c6", "h2", "p4", "s2", "s3", ""):
        for name in ("esp32-" + chip, "esp32" + chip):
            rest = given[len(name) :]
            if low.startswith(name) and name[-1] != "-" and (not rest or rest[0] == "-"):
                return "esp32" + chip + rest
    return given


def chip_name(machine):
    """Return the hardware's name of a chip, from sys.implementation._machine: "LOLIN_C3_MINI with ESP32-C3FH4" is `esp32c3`. Where
    that names none of them: `esp32c3`."""
    mcu = machine.rpartition(" with ")[2].lower().replace("-", "")
    if mcu[:5] != "esp32":
        return "esp32c3"
    return mcu[:7] if mcu[5:7] in ("c2", "c3", "c5", "c6", "h2", "p4", "s2", "s3") else "esp32"


def make(config):
    chosen = config.get("transport", "http")
    if chosen == "http":
        from dfu.http import HttpTransport

        return HttpTransport(config)
    if chosen == "coap":
        from dfu.coap import CoapTransport

        return CoapTransport(config)
    if chosen == "serial":
        from dfu.serial import SerialTransport

        return SerialTransport(config)
    if isinstance(chosen, str):
        raise ValueError("transport %s: expected http, coap, serial or a class of yours" % chosen)
    return chosen(config)
