"""What Prometheus reads from /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from dfud.api import ActualChanged, Bus, DeploymentChanged, DeviceDenied, State, Telemetry, faults


class Metrics:
    """Counts what the bus tells. more: each returns lines of others."""

    def __init__(
        self,
        bus: Bus,
        parked: Callable[[], int],
        store: Callable[[], Mapping[str, float]] = dict[str, float],
        more: Sequence[Callable[[], str]] = (),
    ) -> None:
        self._store = store
        self._more = more
        self._registry = CollectorRegistry()
        changes = Counter(
            "dfud_deployment_changes", "Deployments that entered a state", ["state"], registry=self._registry
        )
        reports = Counter("dfud_device_news", "Devices that said something new of themselves", registry=self._registry)
        telemetry = Counter("dfud_telemetry", "Events that devices published", registry=self._registry)
        denied = Counter("dfud_devices_denied", "Requests that were turned away", ["reason"], registry=self._registry)
        gauge = Gauge("dfud_devices_waiting", "Devices that wait for a command", registry=self._registry)
        gauge.set_function(parked)
        of_state = {state: changes.labels(state.value) for state in State}
        bus.subscribe(DeploymentChanged, lambda e: of_state[e.deployment.state].inc())
        bus.subscribe(ActualChanged, lambda e: reports.inc())
        bus.subscribe(DeviceDenied, lambda e: denied.labels(e.reason).inc())
        bus.subscribe(Telemetry, lambda e: telemetry.inc())

    def text(self) -> bytes:
        lines = "".join(f"{name} {value:g}\n" for name, value in self._store().items())
        lines += "".join(f'dfud_contained_errors_total{{where="{where}"}} {n}\n' for where, n in faults().items())
        for others in self._more:
            lines += others()
        return generate_latest(self._registry) + lines.encode()
