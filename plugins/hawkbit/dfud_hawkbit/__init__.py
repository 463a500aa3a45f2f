"""Eclipse hawkBit as the store: firmware, desired state and its progress live there. Uses nothing of dfud but dfud.api.

hawkBit's words stay in this package: a *target* is a device, an *action* a deployment, a *distribution set* a firmware; what
hawkBit calls a controller is the device.
"""

from dfud_hawkbit import plugin

__all__ = ["plugin"]
