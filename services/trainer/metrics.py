"""Metrics of the trainer."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.trainer.model import Mode


class TrainerMetrics:
    """Everything the trainer counts; names start with `tiercel_trainer_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"tiercel_trainer_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"tiercel_trainer_{name}", text, registry=registry)

        self.entries_read = counter("entries_read", "Experience entries read from the stream.")
        self.entries_bad = counter("entries_bad", "Experience entries refused and set aside.")
        self.registry_set_aside = counter(
            "registry_set_aside", "Stored policies found broken and set aside."
        )
        self.entries_acked = counter("entries_acked", "Experience entries taken in and saved.")
        self.records_dropped = counter(
            "records_dropped", "Experience records of no use, by reason.", ("reason",)
        )
        self.missing_decisions = gauge(
            "missing_decisions", "Decisions of routers that never came, by their numbers."
        )
        self.cut_processes = gauge(
            "cut_processes", "Router processes that ended without a word, records in hand or not."
        )
        self.told_drops = gauge(
            "told_drops", "Records that routers told they had dropped unwritten."
        )
        self.snapshots_published = counter("snapshots_published", "Snapshots put in the registry.")
        self.snapshots_refused = counter(
            "snapshots_refused", "Snapshots refused, by reason.", ("reason",)
        )
        self.gate_decisions = counter("gate_decisions", "Verdicts of the gate.", ("verdict",))
        self.rollout_steps = counter(
            "rollout_steps",
            "Steps of rollouts, and what the stage before found.",
            ("stage", "verdict"),
        )
        self.rollout_stage = gauge(
            "rollout_stage",
            "Stage of the rollout that runs: 3 shadow, 4 canary, 8 switchback; 0 if none does.",
        )
        self.watch_steps = counter(
            "watch_steps", "Steps of watches over policies that became active.", ("stage",)
        )
        self.watch_under_way = gauge(
            "watch_under_way", "1 while a policy that became active is watched."
        )
        self.activations = counter("activations", "Policies activated by this process.")
        self.hindsight_minutes = counter(
            "hindsight_minutes", "Minutes looked back at, by what was found.", ("result",)
        )
        self.training_failures = counter(
            "training_failures", "Training runs that failed, by mode.", ("mode",)
        )
        for mode in Mode:  # told as 0: nobody sees a count rise that began as 1
            self.training_failures.labels(mode.name.lower())
        self.worker_failures = counter("worker_failures", "Worker processes that died.")
        self.save_failures = counter("save_failures", "Saves of the replay that failed.")
        self.steps = gauge("learner_steps", "Learner steps of the newest online run.")
        self.transitions = gauge("transitions", "Transitions taken in by the newest online run.")
        self.waiting = gauge("waiting_records", "Decisions that wait for outcome or horizon.")
        self.loss = gauge("loss", "Mean loss over the last learner steps.")
        self.mean_reward = gauge("mean_reward", "Mean reward of recent requests, 0 to 1.")
        self.backlog = gauge("backlog_entries", "Entries in the experience stream.")
        self.activation = gauge("activation", "Number of the present activation.")
        self.store_reachable = gauge(
            "store_reachable", "1 if the registry's Redis answers and takes what is to be stored."
        )
