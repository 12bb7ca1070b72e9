"""Hydra and OmegaConf, and nothing else: composes conf/ and turns the result into plain dataclasses, once.

After `to_config` no OmegaConf object exists. This module knows no field of the schema (`erhpc.config` does).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from erhpc.config import ExperimentConfig, FitConfig
from erhpc.errors import ConfigError, ErhpcError

CONF_DIRECTORY = Path(__file__).resolve().parent.parent / "conf"
EXIT_USER_ERROR = 2

T = TypeVar("T")


def register_schemas() -> None:
    """Make the schemas known to Hydra; conf/config.yaml and conf/fit.yaml name them in their defaults."""
    store = ConfigStore.instance()
    store.store(name="experiment_schema", node=ExperimentConfig)
    store.store(name="fit_schema", node=FitConfig)


def to_config(composed: DictConfig, kind: type[T]) -> T:
    """Turn a composed configuration into the dataclass `kind`, validating every value.

    Raises:
        ConfigError: a value is missing, of the wrong type, or refused by the schema.
    """
    try:
        built = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {error}".strip()) from error
    if not isinstance(built, kind):
        raise ConfigError(f"configuration is no {kind.__name__}: its defaults list must open with the schema.")
    return built


def to_yaml(composed: DictConfig) -> str:
    """Render a composed configuration, resolved, as YAML that can be read back."""
    return OmegaConf.to_yaml(composed, resolve=True)


def compose_experiment(overrides: Sequence[str], config_directory: Path = CONF_DIRECTORY) -> DictConfig:
    """Compose conf/config.yaml with command-line style overrides, outside of a verb (tests, notebooks)."""
    register_schemas()
    with hydra.initialize_config_dir(str(config_directory), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def is_multirun() -> bool:
    """Whether the verb runs as one of several jobs of --multirun."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def verb(kind: type[T], config_name: str = "config") -> Callable[[Callable[[T, str], int | None]], Callable[[], None]]:
    """Decorate `main(config, yaml) -> exit code` as a Hydra verb whose user errors print without a traceback."""
    register_schemas()

    def decorate(main: Callable[[T, str], int | None]) -> Callable[[], None]:
        @functools.wraps(main)
        def run(composed: DictConfig) -> None:
            try:
                code = main(to_config(composed, kind), to_yaml(composed))
            except ErhpcError as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                code = EXIT_USER_ERROR
            if code:
                sys.exit(code)

        # Hydra inspects the signature of what it decorates; without __wrapped__ it sees `composed`.
        del run.__wrapped__  # type: ignore[attr-defined]
        decorated = hydra.main(version_base="1.3", config_path=str(CONF_DIRECTORY), config_name=config_name)(run)
        return cast(Callable[[], None], decorated)

    return decorate


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file into plain dictionaries and lists.

    Raises:
        ConfigError: the file is not readable YAML with keys at its top.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no mapping.")
    return {str(key): value for key, value in content.items()}
