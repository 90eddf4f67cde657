"""The run folder: its layout, the stages that are done, the log and the progress bars."""

import contextlib
import dataclasses
import datetime
import json
import logging
import shlex
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

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a run.

    run: does the work and returns facts for the report (JSON). settings: what of the configuration it depends
    on. after: the stages whose results it reads. modules: files and folders (from the packages' root) whose
    source it depends on: a change there, in the settings or in an earlier stage makes it run again.
    """

    name: str
    run: "Callable[[Run], dict[str, Any]]"
    settings: Callable[[Config], Any]
    after: tuple[str, ...]
    modules: tuple[str, ...]


class Run:
    """An open run folder. `path(name)` is a file in it; `facts(stage)` what an ended stage reported."""

    def __init__(self, folder: Path, config: Config, quiet: bool = False) -> None:
        self.folder, self.config = folder, config
        self.console = Console(stderr=True, quiet=quiet)
        self.log = logging.getLogger("bridgeface")
        self.key = ""
        """Fingerprint of the stage that is running: what it keeps for a resume carries it in its name."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, config: Config, quiet: bool = False) -> Iterator["Run"]:
        """Create the folder or continue in it; UserError where it cannot be written or is in use."""
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", as_dict(config))
            if not (folder / "run.json").exists():
                write_json(folder / "run.json", {"started": now()})
        except OSError as problem:
            raise UserError(f"cannot write to {folder}: {problem.strerror}; choose another --out") from None
        run = cls(folder, config, quiet)
        handler = logging.FileHandler(folder / "run.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        run.log.setLevel(logging.INFO)
        run.log.addHandler(handler)
        try:
            with lock(folder):
                run.log.info("command: %s", command())
                yield run
        finally:
            run.log.removeHandler(handler)
            handler.close()

    def path(self, name: str) -> Path:
        return self.folder / name

    def started(self) -> str:
        """When this folder's run began first, ISO 8601."""
        return json.loads(self.path("run.json").read_text())["started"]

    def say(self, message: str) -> None:
        """One line for the user and the log."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        self.log.info(message)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
        """A progress bar with the time left; yields a function that takes the number of items just finished."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        with bar:
            task = bar.add_task(what, total=total, completed=done)
            yield lambda count: bar.advance(task, count)

    def save_array(self, name: str, array: np.ndarray) -> None:
        with whole(self.path(name)) as temporary:
            np.save(temporary.open("wb"), array)

    def array(self, name: str) -> np.ndarray:
        return np.load(self.path(name), allow_pickle=False)

    def record(self, stage: str) -> dict[str, Any]:
        """What is stored of a stage: fingerprint, seconds, facts; empty where it has not ended."""
        path = self.path(f"stages/{stage}.json")
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise UserError(f"{path} is damaged; delete it, and the stage runs again") from None

    def facts(self, stage: str) -> dict[str, Any]:
        return self.record(stage)["facts"]

    def is_done(self, stage: Stage) -> bool:
        return self.record(stage.name).get("fingerprint") == self.fingerprint(stage)

    def fingerprint(self, stage: Stage) -> str:
        """Changes with the stage's settings, its source and the fingerprints of the stages before it."""
        before = {name: self.record(name).get("fingerprint") for name in stage.after}
        sources = [file for module in stage.modules for file in sorted(_sources(ROOT / module))]
        return fingerprint({"settings": stage.settings(self.config), "before": before}, sources)

    def execute(self, stage: Stage) -> None:
        """Run a stage unless it is done; its record is written last, so a killed stage is not done."""
        missing = [name for name in stage.after if not self.record(name)]
        if missing:
            raise UserError(f"stage {stage.name} needs {', '.join(missing)} first; leave out --stages or name them")
        if self.is_done(stage):
            self.say(f"{stage.name:10} done before ({self.record(stage.name)['summary']})")
            return
        self.key = self.fingerprint(stage)
        self.log.info("%s begins", stage.name)
        began, processor = time.monotonic(), time.process_time()
        facts = stage.run(self)
        summary = facts.pop("summary")
        spent = {
            "seconds": round(time.monotonic() - began, 2),
            "cpu_seconds": round(time.process_time() - processor, 2),
        }
        write_json(
            self.path(f"stages/{stage.name}.json"),
            {"fingerprint": self.key, "summary": summary, **spent, "facts": facts, "ended": now()},
        )
        self.say(f"{stage.name:10} {spent['seconds']:7.1f} s ({spent['cpu_seconds']:.0f} s of CPU)  {summary}")


def _sources(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.suffix in {".py", ".j2"})
    else:
        yield path


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command() -> str:
    """How this process was started, as one can type it again."""
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.is_relative_to(ROOT):
        module = ".".join(program.relative_to(ROOT).with_suffix("").parts)
        return shlex.join(["python", "-m", module.removesuffix(".__main__"), *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])
