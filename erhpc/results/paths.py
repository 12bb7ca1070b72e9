"""Every file name of a run, in one place. No other module joins a path inside a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The folder of one run, `runs/<experiment>/<time>-<id>/`, and everything in it."""

    root: Path

    @property
    def plan(self) -> Path:
        """The plan the job executes (JSON)."""
        return self.root / "plan.json"

    @property
    def config(self) -> Path:
        """The composed configuration, for people and for running it again (YAML)."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Provenance: versions, git commit, hosts, GPUs, seeds, schema version (JSON)."""
        return self.root / "manifest.json"

    @property
    def job(self) -> Path:
        """What was submitted: scheduler and job id (JSON)."""
        return self.root / "job.json"

    @property
    def status(self) -> Path:
        """The state of the run, rewritten by rank 0 (JSON)."""
        return self.root / "status.json"

    @property
    def records(self) -> Path:
        """One row per request (Parquet)."""
        return self.root / "records.parquet"

    @property
    def levels(self) -> Path:
        """One row per level (Parquet)."""
        return self.root / "levels.parquet"

    @property
    def prediction(self) -> Path:
        """What was predicted of each level before the run began (Parquet)."""
        return self.root / "prediction.parquet"

    @property
    def key(self) -> Path:
        """The token of the run, readable by its owner only."""
        return self.root / ".key"

    @property
    def endpoints(self) -> Path:
        """URLs of every replica, of the gateway, and of where the gateway tells of itself (JSON)."""
        return self.root / "endpoints.json"

    @property
    def gateway_metrics(self) -> Path:
        """The gateway's counters after the last level (Prometheus text)."""
        return self.root / "gateway.prom"

    @property
    def calibration(self) -> Path:
        """What the client costs and how far its own stamps are off, measured before the first level (JSON)."""
        return self.root / "calibration.json"

    @property
    def engine_profile(self) -> Path:
        """What `python -m erhpc.calibrate` made of the run (TOML)."""
        return self.root / "engine_profile.toml"

    @property
    def search(self) -> Path:
        """What a search for the largest load found, with every level it tried (JSON)."""
        return self.root / "search.json"

    @property
    def artefact(self) -> Path:
        """The router's classifier."""
        return self.root / "router"

    @property
    def guest_package(self) -> Path:
        """What of erhpc runs inside vLLM, where redirected requests are let in."""
        return self.root / "guest"

    @property
    def logs(self) -> Path:
        """Output of every process."""
        return self.root / "logs"

    @property
    def submission(self) -> Path:
        """submitit's files: sbatch text, pickles, output of each task."""
        return self.root / "submission"

    @property
    def parts(self) -> Path:
        """Records of a level on their way from a client to rank 0."""
        return self.root / "parts"

    @property
    def report(self) -> Path:
        """Figures and tables of this run."""
        return self.root / "report"

    def log(self, process: str) -> Path:
        """Output of one process."""
        return self.logs / f"{process}.log"

    def spec(self, process: str) -> Path:
        """What one process is told at its start (JSON)."""
        return self.root / "specs" / f"{process}.json"

    def model(self, expert: str) -> Path:
        """The synthetic model directory of one expert."""
        return self.root / "models" / expert

    def part(self, level: int, worker: int) -> Path:
        """Records that one client process wrote for one level (Parquet)."""
        return self.parts / f"level-{level:03d}-client-{worker}.parquet"
