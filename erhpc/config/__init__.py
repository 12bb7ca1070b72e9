"""The schema of a configuration: plain dataclasses, one per Hydra group, validated when built.

This room knows neither Hydra nor OmegaConf (`erhpc.composition` does) and reads no file. Values come from
`conf/`; a field's docstring says its unit and what a wrong value costs. Everyone may import it. Groups that occur
in several places have `check(path)`, called by what holds them, so that a message names the whole key.
"""

from __future__ import annotations

from erhpc.config.arrivals import ArrivalConfig, ProfileConfig, ThinkTimeConfig
from erhpc.config.cluster import ClusterConfig, PlacementConfig
from erhpc.config.experiment import ExperimentConfig, LoadTestConfig, StandaloneGatewayConfig
from erhpc.config.experts import SYNTHETIC_WEIGHTS, ArchitectureConfig, EngineConfig, ExpertConfig, FaultConfig
from erhpc.config.load import LoadConfig, SearchConfig, SloConfig, StopConfig
from erhpc.config.predict import PredictConfig
from erhpc.config.routing import POLICIES, RULES, FitConfig, GatewayConfig, RouterConfig
from erhpc.config.words import AUTO_MODEL, DEMO_CORPUS
from erhpc.config.workload import LengthConfig, PrefixConfig, WorkloadConfig

__all__ = [
    "AUTO_MODEL",
    "DEMO_CORPUS",
    "POLICIES",
    "RULES",
    "SYNTHETIC_WEIGHTS",
    "ArchitectureConfig",
    "ArrivalConfig",
    "ClusterConfig",
    "EngineConfig",
    "ExperimentConfig",
    "ExpertConfig",
    "FaultConfig",
    "FitConfig",
    "GatewayConfig",
    "LengthConfig",
    "LoadConfig",
    "LoadTestConfig",
    "PlacementConfig",
    "PredictConfig",
    "PrefixConfig",
    "ProfileConfig",
    "RouterConfig",
    "SearchConfig",
    "SloConfig",
    "StandaloneGatewayConfig",
    "StopConfig",
    "ThinkTimeConfig",
    "WorkloadConfig",
]
