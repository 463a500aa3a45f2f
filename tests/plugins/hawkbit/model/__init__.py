"""A small stateful model of the Management and device (DDI) calls of hawkBit that dfud uses.

It is not hawkBit: it holds what the contract suite has seen a real one answer, and answers 501 to everything else, keeping
the request in `HawkbitModel.unknown` so that the test which sent it fails. tests/plugins/hawkbit/recorded holds it to the real one.
"""

from tests.plugins.hawkbit.model.server import HawkbitModel

__all__ = ["HawkbitModel"]
