"""The run folder: its layout, the stages that are done, the log and the progress bars."""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from compress.config import Config, as_dict
from faces.errors import UserError
from faces.files import fingerprint, lock, whole, write_json
from faces.threads import threads

ROOT = Path(__file__).resolve().parent.parent
# The temporary names of `faces.files.whole`.
_HALF_WRITTEN = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[a-z0-9]+)?")

_KEPT_EVERY = 10.0
_OWN = frozenset({".lock", "config.json", "run.json"})


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a run.

    run: does the work and returns facts for the report (JSON). settings: what of the configuration it depends
    on. after: the stages whose results it reads; what those read need not be named. modules: files and folders
    (from the packages' root) whose source it depends on: a change there, in the settings or in an earlier stage
    makes it run again.
    """

    name: str
    run: "Callable[[Run], dict[str, Any]]"
    settings: Callable[[Config], Any]
    after: "tuple[Stage, ...]"
    modules: tuple[str, ...]


class Run:
    """An open run folder. `path(name)` is a file in it; `facts(stage)` what an ended stage reported."""

    def __init__(self, folder: Path, config: Config, quiet: bool = False) -> None:
        self.folder, self.config = folder, config
        self.console = Console(stderr=True, quiet=quiet)
        self.log = logging.getLogger("bridgeface")
        self.key = ""
        """Fingerprint of the stage that is running: what it keeps for a resume carries it in its name."""
        self._fingerprints: dict[str, str] = {}
        self._clock: _Clock | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, config: Config, quiet: bool = False, fresh: bool = False) -> Iterator["Run"]:
        """Create the folder or continue in it; UserError where it cannot be written or is in use.

        `fresh` first forgets what a run left there; files that a run did not write stay.
        """
        with contextlib.ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # Before anything is written: the folder may be another process's.
                held.enter_context(lock(folder))
                _tidy(folder, fresh)
                (folder / "stages").mkdir(exist_ok=True)
                write_json(folder / "config.json", as_dict(config))
                if not (folder / "run.json").exists():
                    write_json(folder / "run.json", {"started": now()})
                handler = logging.FileHandler(folder / "run.log", encoding="utf-8", errors="backslashreplace")
            except OSError as problem:
                raise UserError(f"cannot write to {folder}: {problem.strerror}; choose another --out") from None
            held.callback(handler.close)
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            run = cls(folder, config, quiet)
            run.log.setLevel(logging.INFO)
            run.log.addHandler(handler)
            held.callback(run.log.removeHandler, handler)
            run.log.info("command: %s", command())
            yield run

    def path(self, name: str) -> Path:
        return self.folder / name

    def started(self) -> str:
        """When this folder's run began first, ISO 8601."""
        return _stored(self.path("run.json"), ("started",))["started"]

    def say(self, message: str) -> None:
        """One line for the user and the log."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        self.log.info(message)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
        """As `progress_bar`, on this run's console; the time that the stage has taken so far is kept meanwhile."""
        with progress_bar(self.console, what, total, done) as advance:

            def both(count: int) -> None:
                advance(count)
                if self._clock is not None:
                    self._clock.tick()

            yield both

    def save_features(self, name: str, features: np.ndarray) -> None:
        save_features(self.path(name), features)

    def features(self, name: str) -> np.ndarray:
        return load_features(self.path(name))

    def record(self, stage: str) -> dict[str, Any]:
        """What is stored of a stage: fingerprint, seconds, facts; empty where it has not ended."""
        return _stored(self.path(f"stages/{stage}.json"), ("fingerprint", "summary", "seconds", "files", "facts"))

    def facts(self, stage: str) -> dict[str, Any]:
        """What an ended stage reported; UserError where its record was deleted."""
        record = self.record(stage)
        if not record:
            raise UserError(f"stage {stage} has not ended in {self.folder}; leave out --stages, or name it too")
        return record["facts"]

    def is_done(self, stage: Stage) -> bool:
        """Did it end as it would run now (settings, sources, earlier stages), and is all there that it wrote?"""
        record = self.record(stage.name)
        same = record.get("fingerprint") == self.fingerprint(stage)
        there = same and all(self.path(name).is_file() for name in record["files"])
        return there and all(self.is_done(before) for before in stage.after)

    def fingerprint(self, stage: Stage) -> str:
        """Changes with the stage's settings, its source and the fingerprints of the stages before it.

        Taken once a run: a source or an input that changes while a stage works on it was not what it read.
        """
        if stage.name not in self._fingerprints:
            before = {one.name: self.fingerprint(one) for one in stage.after}
            sources = [file for module in stage.modules for file in sorted(_sources(ROOT / module))]
            values = {"settings": stage.settings(self.config), "before": before}
            self._fingerprints[stage.name] = fingerprint(values, sources)
        return self._fingerprints[stage.name]

    def need(self, *stages: Stage, what: str) -> None:
        """UserError where one of them is not done."""
        if missing := [stage.name for stage in stages if not self.is_done(stage)]:
            raise UserError(
                f"{what} needs {', '.join(missing)} first, with these very settings; leave out --stages, or name it too"
            )

    def execute(self, stage: Stage) -> None:
        """Run a stage unless it is done; its record is written last, so a killed stage is not done."""
        self.need(*stage.after, what=f"stage {stage.name}")
        if self.is_done(stage):
            self.say(f"{stage.name:10} done before ({self.record(stage.name)['summary']})")
            return
        self.key = self.fingerprint(stage)
        # From here on the stage overwrites what an earlier record speaks of.
        self.path(f"stages/{stage.name}.json").unlink(missing_ok=True)
        self.log.info("%s begins", stage.name)
        self._clock = clock = _Clock(self.path(f"work/begun/{stage.name}.json"), self.key, self._files())
        try:
            with threads(1):
                facts = stage.run(self)
        finally:
            clock.tick()
        summary, spent = facts.pop("summary"), clock.spent()
        write_json(
            self.path(f"stages/{stage.name}.json"),
            {
                "fingerprint": self.key,
                "summary": summary,
                **spent,
                "files": [name for name, written in self._files().items() if clock.before.get(name) != written],
                "facts": facts,
                "ended": now(),
            },
        )
        clock.file.unlink(missing_ok=True)
        self.say(f"{stage.name:10} {spent['seconds']:7.1f} s ({spent['cpu_seconds']:.0f} s of CPU)  {summary}")

    def _files(self) -> dict[str, int]:
        """When each file of the run was written last; what only resumes a stage lies deeper and does not count, nor
        does a log or another file that the shell writes our output to."""
        found = [path for place in (self.folder, self.path("work")) for path in sorted(place.glob("*"))]
        kept = [
            (path, path.stat()) for path in found if path.is_file() and path.name not in _OWN and path.suffix != ".log"
        ]
        streams = [os.fstat(number) for number in (1, 2)]
        return {
            str(path.relative_to(self.folder)): stat.st_mtime_ns
            for path, stat in kept
            if not any(os.path.samestat(stat, one) for one in streams)
        }


class _Clock:
    """What a stage has taken, the sessions that broke off among it, and the files that were there before it; kept in
    `file` until the stage ends."""

    def __init__(self, file: Path, key: str, files: dict[str, int]) -> None:
        self.file, self.key = file, key
        kept = _stored(file, ("fingerprint", "seconds", "cpu_seconds", "before"))
        if kept.get("fingerprint") != key:
            kept = {"seconds": 0.0, "cpu_seconds": 0.0, "before": files}
        self.before: dict[str, int] = kept["before"]
        self._wall, self._cpu = kept["seconds"] - time.monotonic(), kept["cpu_seconds"] - time.process_time()
        self._kept = time.monotonic()

    def spent(self) -> dict[str, float]:
        wall, cpu = self._wall + time.monotonic(), self._cpu + time.process_time()
        return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}

    def tick(self) -> None:
        """Keep it, but not more often than every ten seconds; what broke off sooner leaves nothing."""
        if time.monotonic() >= self._kept + _KEPT_EVERY:
            self._kept = time.monotonic()
            write_json(self.file, {"fingerprint": self.key, **self.spent(), "before": self.before})


@contextlib.contextmanager
def progress_bar(console: Console, what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left; yields a function that takes the number of items just finished."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    silent = not console.is_terminal  # a file would get an empty line for each bar
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def save_features(path: Path, features: np.ndarray) -> None:
    """Write (N, D) float32 as float16, which is far finer than a feature is known; as it is where it does not fit."""
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    with whole(path) as temporary:
        np.save(temporary.open("wb"), half if np.isfinite(half).all() else features)


def load_features(path: Path) -> np.ndarray:
    """What `save_features` wrote, (N, D) float32."""
    return np.load(path, allow_pickle=False).astype(np.float32)


def _sources(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.suffix in {".py", ".j2"})
    else:
        yield path


def _stored(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with these keys; {} where there is no file; UserError where it holds anything else."""
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not all(key in stored for key in keys):
        raise UserError(f"{path} is damaged; delete it, and what it stands for is made again")
    return stored


def _tidy(folder: Path, fresh: bool) -> None:
    """Remove the half-written files of a killed run; for a fresh one also its records, work and results."""
    if not any((folder / name).exists() for name in ("run.json", "stages/data.json")):
        # No run wrote here: what the folder holds, a `work` maybe, is the user's.
        return
    for file in (*folder.glob(".*"), *(folder / "stages").glob(".*"), *(folder / "work").rglob(".*")):
        if _HALF_WRITTEN.fullmatch(file.name):
            file.unlink()
    if fresh:
        for name in ("stages", "work"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in ("run.json", "results.json", "report.html", "MODEL_CARD.md"):
            (folder / name).unlink(missing_ok=True)


def file_state(path: str | None) -> tuple[int, int] | None:
    """Size and time of change of a file that a stage reads; None where there is none."""
    if path is None or not Path(path).is_file():
        return None
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command() -> str:
    """How this process was started, as one can type it again."""
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.is_relative_to(ROOT):
        module = ".".join(program.relative_to(ROOT).with_suffix("").parts)
        return shlex.join(["python", "-m", module.removesuffix(".__main__"), *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])
