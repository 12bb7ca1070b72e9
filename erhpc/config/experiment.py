"""One experiment: all groups together, and what must hold between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from erhpc.config.cluster import ClusterConfig, PlacementConfig
from erhpc.config.experts import EngineConfig, ExpertConfig
from erhpc.config.load import LoadConfig, SearchConfig, SloConfig, StopConfig
from erhpc.config.predict import PredictConfig
from erhpc.config.routing import POLICIES, GatewayConfig, RouterConfig
from erhpc.config.words import AUTO_MODEL
from erhpc.config.workload import WorkloadConfig
from erhpc.errors import ConfigError, require_range

TEMPLATE_TOKENS = 64
"""A chat template adds some ten tokens to a prompt."""


@dataclass
class ExperimentConfig:
    """One experiment, as composed from conf/: everything a run depends on."""

    name: str = "unnamed"
    experts: dict[str, ExpertConfig] = field(default_factory=dict)
    """By the expert's name: its role, the model name users may pin, and the column in the results."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    slo: SloConfig = field(default_factory=SloConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Seed of everything random: prompts, lengths, random policy, fitting."""
    output_root: str = "runs"
    """Folder that receives <experiment>/<time>-<id>/."""
    detach: bool = False
    """Submit and leave; attach later with `python -m erhpc.status RUN`."""

    def __post_init__(self) -> None:
        if not self.experts:
            raise ConfigError(
                "experts is empty. Choose an experiment (+experiment=quickstart), or add one: "
                "+expert@experts.math=llama3_8b."
            )
        check_name(self.name)
        bad = [name for name in self.experts if not name.replace("_", "").replace("-", "").isalnum()]
        if bad or AUTO_MODEL in self.experts:
            raise ConfigError(
                f"experts: {bad or [AUTO_MODEL]} cannot be expert names. Use letters, digits, '-' and '_'; "
                f"{AUTO_MODEL!r} is the name under which the router answers."
            )
        require_range("seed", self.seed, 0)
        for name, expert in self.experts.items():
            expert.check(f"experts.{name}")
        check_sweep(self.workload, self.slo, self.stop, self.search)
        self._check_lengths()
        self._check_router()
        if self.gateway.tls_certificate is not None:
            raise ConfigError(
                f"gateway.tls_certificate={self.gateway.tls_certificate}: a run speaks HTTP only. Leave it out, or "
                "start a gateway of its own with it: python -m erhpc.gateway."
            )

    @property
    def redirects(self) -> bool:
        """Whether clients are sent from the gateway to the replicas, which then must know them."""
        return self.router.policy != "none" and self.gateway.data_path == "redirect"

    @property
    def longest_prompt_tokens(self) -> int:
        """What every expert takes, with the longest answer and what a chat template adds."""
        answer = round(self.workload.output_tokens.longest_tokens)
        shortest = min(expert.max_model_len for expert in self.experts.values())
        return max(1, shortest - answer - TEMPLATE_TOKENS)

    def _check_lengths(self) -> None:
        """The longest answer must leave room for a prompt in every expert."""
        length = self.workload.output_tokens
        key, longest = "mean" if length.kind == "fixed" else "high", length.longest_tokens
        for name, expert in self.experts.items():
            if longest >= expert.max_model_len:
                raise ConfigError(
                    f"workload.output_tokens.{key}={longest} leaves no room for a prompt: experts.{name}.max_model_len="
                    f"{expert.max_model_len} bounds prompt plus answer. Lower the first or raise the second."
                )

    def _check_router(self) -> None:
        total = sum(expert.replicas for expert in self.experts.values())
        if self.router.policy == "none" and total != 1:
            raise ConfigError(
                f"router.policy=none needs exactly one replica, experts have {total}. "
                f"Choose another router ({', '.join(POLICIES[:-1])}) or a single expert."
            )
        default = self.router.default_expert
        if default is not None and default not in self.experts:
            raise ConfigError(
                f"router.default_expert={default!r} is no expert of this experiment. "
                f"Allowed: {', '.join(self.experts)}."
            )


@dataclass
class StandaloneGatewayConfig:
    """What `python -m erhpc.gateway` is told: a gateway before servers that run already."""

    experts: list[str]
    """Base URLs of OpenAI-compatible servers, each `URL` or `NAME=URL`; NAME is the expert, by default its model.
    Several with the same expert are its replicas."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all of the machine, and then give a key."""
    port: int = 8000
    """0: any free one."""
    status_port: int | None = None
    """Where the gateway tells of itself apart from requests; null: `port` + 1000."""
    key: str | None = None
    """File with the bearer token that users need; null: none is needed, unless gateway.keys names some."""
    expert_key: str | None = None
    """File with the bearer token that the servers need; null: none is sent."""
    router: RouterConfig = field(default_factory=RouterConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.experts:
            raise ConfigError("experts is empty. Give one server or more: --experts http://127.0.0.1:8001 ...")
        require_range("port", self.port, 0, 65535)
        if self.status_port is not None:
            require_range("status_port", self.status_port, 0, 65535)
        if self.router.policy == "none":
            raise ConfigError("router.policy=none means that there is no gateway. Choose another policy.")
        if self.router.policy == "cluster" and self.router.artefact is None:
            raise ConfigError(
                "router.policy=cluster needs router.artefact, a directory that `python -m erhpc.fit` wrote for as many "
                "clusters as there are experts. Fit one, or choose another policy: router=least_loaded."
            )


@dataclass
class LoadTestConfig:
    """What `python -m erhpc.load` is told: a load on any OpenAI-compatible server, without router or scheduler."""

    url: str
    """Base URL of the server: http(s)://host:port, with or without /v1, or unix://<path, / as %2F>."""
    model: str | None = None
    """Model to ask for; null: the first one that /v1/models lists."""
    key: str | None = None
    """File that holds the bearer token; null: $OPENAI_API_KEY, or none."""
    name: str = "load"
    """Names the folder of results: <output_root>/<name>/<time>-<id>/."""
    users: list[int] | None = None
    """Short for workload.users."""
    rates_per_s: list[float] | None = None
    """Short for workload.rates_per_s."""
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    slo: SloConfig = field(default_factory=SloConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    seed: int = 0
    output_root: str = "runs"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://", "unix://")):
            raise ConfigError(
                f"url={self.url!r} must begin with http://, https:// or unix://, e.g. http://127.0.0.1:8000."
            )
        check_name(self.name)
        require_range("seed", self.seed, 0)
        self._take_short_forms()
        if self.load.nodes:
            raise ConfigError(
                f"load.nodes={self.load.nodes} needs a cluster: all clients run on this machine. Set load.processes."
            )
        check_sweep(self.workload, self.slo, self.stop, self.search)

    def _take_short_forms(self) -> None:
        if self.users is not None:
            self.workload = replace(self.workload, users=self.users)
        if self.rates_per_s is not None:
            self.workload = replace(self.workload, rates_per_s=self.rates_per_s)
        self.users = self.rates_per_s = None


def check_name(name: str) -> None:
    """Raise ConfigError if `name` cannot name a folder."""
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"name={name!r} names a folder. Use letters, digits, '-' and '_'.")


def check_sweep(workload: WorkloadConfig, slo: SloConfig, stop: StopConfig, search: SearchConfig) -> None:
    """Raise ConfigError if the levels that are asked for contradict each other."""
    needs_rates = workload.arrivals.is_open and workload.arrivals.kind != "trace" and search.kind == "none"
    if needs_rates and not workload.rates_per_s:
        raise ConfigError(
            f"workload.arrivals.kind={workload.arrivals.kind} needs rates. Set workload.rates_per_s=[1,10,100]."
        )
    needs_slo = {"search.kind": search.kind != "none", "stop.slo_misses": stop.slo_misses is not None}
    if workload.input_tokens_of_levels and search.kind != "none":
        raise ConfigError(
            f"search.kind={search.kind} finds its levels itself: workload.input_tokens_of_levels can't be given."
        )
    asking = [key for key, asks in needs_slo.items() if asks]
    if asking and not slo.is_given:
        raise ConfigError(f"{', '.join(asking)} needs an SLO. Set slo.ttft_s, slo.tpot_s or slo.e2e_s, in seconds.")
    if (search.kind == "rate") != workload.arrivals.is_open and search.kind != "none":
        raise ConfigError(
            f"search.kind={search.kind} does not go with workload.arrivals.kind={workload.arrivals.kind}. "
            "users needs arrivals.kind=closed, rate needs poisson, gamma, constant or trace."
        )
