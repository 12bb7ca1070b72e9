"""Hydra and OmegaConf, and nothing else: composes conf/ and turns the result into plain dataclasses, once.

After `to_config` no OmegaConf object exists. This module knows no field of the schema (`erhpc.config` does).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from erhpc.config import (
    DEMO_CORPUS,
    ExperimentConfig,
    FitConfig,
    LoadTestConfig,
    StandaloneGatewayConfig,
    WorkloadConfig,
)
from erhpc.errors import ConfigError, ErhpcError

CONF_DIRECTORY = Path(__file__).resolve().parent.parent / "conf"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_FULL_ERROR = "HYDRA_FULL_ERROR"
_WRONG_KEY = (ConfigAttributeError, ConfigKeyError)

_RERUN_HEAD = """\
# Run it again: python -m erhpc.launch --config-path <this folder, absolute> --config-name config
defaults:
  - experiment_schema
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_

"""
_RERUN_HYDRA = """\
hydra:
  output_subdir: null
  run:
    dir: .
  job:
    chdir: false
"""

T = TypeVar("T")


def register_schemas() -> None:
    """Make the schemas known to Hydra; conf/config.yaml and conf/fit.yaml name them in their defaults."""
    store = ConfigStore.instance()
    store.store(name="experiment_schema", node=ExperimentConfig)
    store.store(name="fit_schema", node=FitConfig)
    store.store(name="load_schema", node=LoadTestConfig)
    store.store(name="gateway_schema", node=StandaloneGatewayConfig)


def to_config(composed: DictConfig, kind: type[T]) -> T:
    """Turn a composed configuration into the dataclass `kind`, validating every value.

    Raises:
        ConfigError: a value is missing, of the wrong type, or refused by the schema.
    """
    try:
        built = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if not isinstance(built, kind):
        raise ConfigError(f"configuration is no {kind.__name__}: its defaults list must open with the schema.")
    strangers = list(_find_strangers(OmegaConf.to_container(composed), dataclasses.asdict(built)))  # type: ignore[call-overload]
    if strangers:
        names = ", ".join(field.name for field in dataclasses.fields(built))  # type: ignore[arg-type]
        raise ConfigError(f"{', '.join(strangers)}: no such key. Allowed at the top: {names}.")
    if isinstance(built, ExperimentConfig):
        _anchor_paths(built, Path.cwd())
    if isinstance(built, ExperimentConfig | LoadTestConfig):
        _anchor_workload(built.workload, Path.cwd())
    return built


def _anchor_paths(experiment: ExperimentConfig, folder: Path) -> None:
    """Make paths absolute: they mean files near whoever typed them, and the job starts elsewhere."""
    router = experiment.router
    if router.corpus != DEMO_CORPUS:
        router.corpus = str(folder / router.corpus)
    if router.artefact is not None:
        router.artefact = str(folder / router.artefact)
    if router.embedding is not None:
        router.embedding = str(folder / router.embedding)
    if experiment.gateway.keys is not None:
        experiment.gateway.keys = str(folder / experiment.gateway.keys)
    if experiment.engine.profile.endswith(".toml"):
        experiment.engine.profile = str(folder / experiment.engine.profile)
    for expert in experiment.experts.values():
        if expert.weights is not None:
            expert.weights = str(folder / expert.weights)


def _anchor_workload(workload: WorkloadConfig, folder: Path) -> None:
    if workload.format != "synthetic" and workload.prompts != DEMO_CORPUS:
        workload.prompts = str(folder / workload.prompts)
    for name in ("trace", "tokenizer"):
        if getattr(workload, name) is not None:
            setattr(workload, name, str(folder / getattr(workload, name)))


def _find_strangers(given: Any, known: Any, path: str = "") -> Iterator[str]:
    """Keys added with `+` that no schema has; OmegaConf would drop them silently."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key not in known:
                yield f"{path}{key}"
            else:
                yield from _find_strangers(value, known[key], f"{path}{key}.")


def to_yaml(config: object) -> str:
    """Render a configuration that `to_config` built, its paths absolute, as a primary configuration of its own."""
    return _RERUN_HEAD + OmegaConf.to_yaml(OmegaConf.structured(config)) + _RERUN_HYDRA


def compose_experiment(overrides: Sequence[str], config_directory: Path = CONF_DIRECTORY) -> DictConfig:
    """Compose conf/config.yaml with command-line style overrides, outside of a verb (tests, notebooks)."""
    register_schemas()
    with hydra.initialize_config_dir(str(config_directory), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def read_experiment(overrides: Sequence[str]) -> ExperimentConfig:
    """Compose and check an experiment outside of a verb of Hydra's. Raises ConfigError."""
    try:
        composed = compose_experiment(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    return to_config(composed, ExperimentConfig)


def is_multirun() -> bool:
    """Whether the verb runs as one of several jobs of --multirun."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def verb(kind: type[T], config_name: str = "config") -> Callable[[Callable[[T, str], int | None]], Callable[[], None]]:
    """Decorate `main(config, yaml) -> exit code` as a Hydra verb whose user errors print without a traceback."""
    register_schemas()

    def decorate(main: Callable[[T, str], int | None]) -> Callable[[], None]:
        codes: list[int] = []

        def run(composed: DictConfig) -> None:
            os.environ.pop(_FULL_ERROR, None)  # not for the processes of the run
            try:
                config = to_config(composed, kind)
                codes.append(main(config, to_yaml(config)) or 0)
            except ErhpcError as error:
                # One configuration of a --multirun that does not fit must not keep the others from running.
                print_error(error)
                codes.append(EXIT_USER_ERROR)

        decorated = hydra.main(version_base="1.3", config_path=str(CONF_DIRECTORY), config_name=config_name)(run)

        @functools.wraps(main)
        def guarded() -> None:
            # Hydra would print its errors itself and leave out which keys are allowed; this makes it raise them.
            os.environ[_FULL_ERROR] = "1"
            try:
                decorated()
            except (ErhpcError, HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
                print_error(error)
                codes.append(EXIT_USER_ERROR)
            except KeyboardInterrupt:
                codes.append(EXIT_INTERRUPTED)
            if code := max(codes, default=0):
                sys.exit(code)

        return guarded

    return decorate


def explain(error: Exception) -> str:
    """Say what a configuration error is about: the key, and for a wrong key or value what is allowed there."""
    cause = error
    while isinstance(deeper := cause.__cause__ or cause.__context__, OmegaConfBaseException):
        cause = deeper
    if not isinstance(cause, OmegaConfBaseException):
        return str(error).partition("Config search path:")[0].strip()
    message = str(cause.msg or cause).splitlines()[0]
    if "is not a ListConfig" in message:
        message = "a list is needed, e.g. [a,b]"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is missing. Give {cause.full_key}=..."
    where = f"{cause.full_key}: " if cause.full_key else ""
    if not isinstance(cause, _WRONG_KEY):
        return f"{where}{message}"
    allowed = _list_keys(cause)
    if not allowed:
        return f"{where}{message}. To add a key, put a + before the whole: +{cause.full_key}=..."
    near = difflib.get_close_matches(str(cause.key), allowed, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{where}{message}.{hint} Allowed: {', '.join(allowed)}."


def _list_keys(error: OmegaConfBaseException) -> list[str]:
    """The keys that exist where a wrong one was given."""
    if isinstance(error.object_type, type) and dataclasses.is_dataclass(error.object_type):
        return [field.name for field in dataclasses.fields(error.object_type)]
    return [str(key) for key in error.parent_node] if isinstance(error.parent_node, DictConfig) else []


def print_error(error: Exception) -> None:
    """One message on stderr, without a traceback."""
    title = type(error).__name__ if isinstance(error, ErhpcError) else ConfigError.__name__
    print(f"{title}: {explain(error)}", file=sys.stderr)
