"""Whether two rollouts could mean the same device: judged by what their specs say, without looking at devices. Pure."""

from __future__ import annotations

from dfud.model.rollout import Plan
from dfud.model.selectors import Requirement, Selector


def may_overlap(first: Plan, second: Plan) -> bool:
    """Return False only if no device whatever can be a member of both."""
    a, b = first.whom, second.whom
    if a.devices and b.devices:
        return bool(a.devices & b.devices)
    if a.hardware and b.hardware and not a.hardware & b.hardware:
        return False
    mine = dict(a.attributes)
    if any(mine.get(key, value) != value for key, value in b.attributes):
        return False
    return not _disjoint(a.selector, b.selector)


def _disjoint(first: Selector, second: Selector) -> bool:
    return any(
        _exclude(a, b) or _exclude(b, a) for a in first.requirements for b in second.requirements if a.key == b.key
    )


def _exclude(a: Requirement, b: Requirement) -> bool:
    """Say whether no label can meet both."""
    if a.operator == "in":
        if b.operator == "in":
            return not set(a.values) & set(b.values)
        if b.operator == "notin":
            return set(a.values) <= set(b.values)
    return a.operator == "absent" and b.operator in ("exists", "in")
