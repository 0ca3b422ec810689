"""The monitor's gauges: one set per scrape, of what is there now."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, generate_latest

from services.common.books import Books, books_of
from services.load_monitor.coordination import Role
from services.load_monitor.loads import RouterLoads
from services.load_monitor.metrics import MonitorCollector
from services.load_monitor.model import (
    EndpointView,
    Health,
    Picture,
    SharedLoads,
    TierGauge,
    order_of,
)
from tests.unit.services.load_monitor.rig import endpoint, report
from tiercel.load_monitor.v1 import minutes_pb2 as minutes_pb

VIEW = EndpointView(
    spec=endpoint("e1"),
    health=Health.READY,
    ramp_weight=0.5,
    probe_wall_ns=1,
    gauges=(TierGauge("small", True, queue_depth=3, mean_queue_s=0.25),),
    reason="",
)
REPORTS = report("r1", in_flight_count=2), report("r2", in_flight_count=5)
LOADS = SharedLoads.of(order_of([VIEW.spec]), REPORTS)
PICTURE = Picture(
    version=7,
    monitor_id="m1",
    publish_wall_ns=1,
    endpoints=(VIEW,),
    loads=LOADS,
    arrival_rate_short_rps=120.0,
    arrival_rate_long_rps=80.0,
    topology_version=4,
)


@dataclass
class Monitor:
    """What a collector asks for."""

    picture: Picture | None = None
    served: Picture | None = None
    role: Role = Role.LEADER
    degraded: tuple[str, ...] = ()
    books: tuple[Books | None, Books | None] = (None, None)

    def page(self) -> list[str]:
        """Returns the lines of one scrape that are no comments."""
        registry = CollectorRegistry()
        registry.register(
            MonitorCollector(
                picture=lambda: self.picture,
                served=lambda: self.served,
                age_s=lambda: 1.5,
                role=lambda: self.role,
                books=lambda: self.books,
                degraded=lambda: self.degraded,
                watcher_count=lambda: 2,
                failed_probe_counts=lambda: (("e1", 9),),
            )
        )
        text = generate_latest(registry).decode()
        return [line for line in text.splitlines() if not line.startswith("#")]


def test_before_the_first_picture_only_the_monitor_itself_is_shown() -> None:
    """Nothing is said of a mesh nobody has looked at."""
    assert [line.partition("{")[0] for line in Monitor().page()] == [
        *("tiercel_monitor_role" for _ in Role),
        "tiercel_monitor_watchers 2.0",
        "tiercel_monitor_failed_probes",
    ]


def test_role_is_one_of_all() -> None:
    """Each role has a line, and one of them is 1."""
    lines = [line for line in Monitor(role=Role.FOLLOWER).page() if "_role" in line]
    assert sorted(line[-3:] for line in lines) == ["0.0"] * (len(Role) - 1) + ["1.0"]
    assert f'tiercel_monitor_role{{role="{Role.FOLLOWER.value}"}} 1.0' in lines


def test_load_is_summed_over_routers_for_candidates_of_the_mesh_only() -> None:
    """A router may name anything, but a name nobody knows makes no series."""
    stranger = replace(
        REPORTS[0], router_id="r3", loads=RouterLoads.by_name({("small", "gone"): (99, 0, 0)})
    )
    loads = SharedLoads.of(LOADS.order, (*REPORTS, stranger))
    page = Monitor(picture=replace(PICTURE, loads=loads)).page()
    in_flight = [line for line in page if line.startswith("tiercel_monitor_in_flight")]
    assert in_flight == [
        'tiercel_monitor_in_flight{endpoint="e1",tier="small"} 7.0',
        'tiercel_monitor_in_flight{endpoint="e1",tier="large"} 0.0',
    ]


def test_rates_name_their_window() -> None:
    """The short rate is over 0.2 s, the long one over 10 s."""
    page = Monitor(picture=PICTURE).page()
    assert 'tiercel_monitor_arrival_rate_rps{window="0.2s"} 120.0' in page
    assert 'tiercel_monitor_arrival_rate_rps{window="10s"} 80.0' in page


def test_what_triton_did_not_say_is_left_out() -> None:
    """An unknown time is no line, not a zero."""
    page = Monitor(picture=PICTURE).page()
    assert 'tiercel_tier_mean_queue_seconds{endpoint="e1",tier="small"} 0.25' in page
    assert not any("mean_compute" in line for line in page)


def test_an_endpoint_that_left_leaves_no_line() -> None:
    """Gauges are made anew at each scrape."""
    monitor = Monitor(picture=PICTURE)
    assert any('"e1"' in line and "health" in line for line in monitor.page())
    monitor.picture = replace(PICTURE, endpoints=())
    assert not any("tiercel_endpoint" in line for line in monitor.page())


def test_a_state_that_is_served_has_an_age_and_a_number() -> None:
    """Before the first one there is no age; then both are those of what is served."""
    assert not any("_state_" in line for line in Monitor().page())
    page = Monitor(served=replace(PICTURE, version=11)).page()
    assert "tiercel_monitor_state_age_seconds 1.5" in page
    assert "tiercel_monitor_state_version 11.0" in page


def test_quality_given_up_is_that_of_the_last_minutes() -> None:
    """Against the largest tier of the very last one, against the bound of the last reckoned one."""
    task = minutes_pb.TaskMinute(
        task="sort",
        on_time_count=8,
        refused_count=2,
        delivered_reward_sum=6.0,
        largest_quality=1.0,
    )
    hindsight = minutes_pb.Hindsight(
        tasks=[minutes_pb.TaskHindsight(task="sort", recorded_count=8, bound_sum=7.0)],
        static_large=[
            minutes_pb.StaticLarge(device_count=1, performance=0.2),
            minutes_pb.StaticLarge(device_count=2, performance=0.7),
        ],
    )
    last = books_of([minutes_pb.Minute(tasks=[task])])
    reckoned = books_of([minutes_pb.Minute(tasks=[task], hindsight=hindsight)])
    page = Monitor(books=(last, reckoned)).page()
    assert 'tiercel_monitor_minute_requests{task="sort"} 10.0' in page
    assert 'tiercel_monitor_quality_given_up{against="always_large",task="sort"} 0.4' in page
    # What was refused could have had all, for all that is known.
    assert 'tiercel_monitor_quality_given_up{against="bound",task="sort"} 0.3' in page
    assert "tiercel_monitor_static_large_devices 2.0" in page
