"""The seam between the agent and the ways to reach dfud. A transport is a class with:

    __init__(config)                            nothing is sent yet
    async status(message, wait_s, buffer)       send a status, wait up to wait_s for something new;
                                                return how many bytes of command are in buffer, 0: nothing new
    async chunk(package, number, buffer)        fetch one chunk into buffer, return its length
    async enrol(message, buffer)                send an enrolment, return when it is accepted; only needed for a `claim`
    async close()                               may be called at any time
    rest()                                      may be missing; before much RAM is needed: free what the next call can make again

All three raise TransportError when the server cannot be reached, Denied when it does not accept the credentials, and chunk()
raises Gone when there is no such package any more. `transport` in the config chooses: "http" (the default), "coap",
or a class of yours.
"""


class TransportError(Exception):
    """The server could not be reached, or did not answer as it should: worth another try later."""


class Denied(TransportError):
    """The credentials are not accepted."""


class Gone(TransportError):
    """The package is not there any more: ask again what to do."""


def make(config):
    chosen = config.get("transport", "http")
    if chosen == "http":
        from dfu.http import HttpTransport

        return HttpTransport(config)
    if chosen == "coap":
        from dfu.coap import CoapTransport

        return CoapTransport(config)
    if isinstance(chosen, str):
        raise ValueError("transport")
    return chosen(config)
