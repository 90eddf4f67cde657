"""Fetch all pinned packages into android_demo/build/cache: python -m android_demo.fetch."""

from pathlib import Path

import click

from android_demo import pins
from faces.cli import run_cli


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debs", type=click.Path(path_type=Path), help="Folder with libandroid-23-java and dalvik-exchange.")
@click.option("--mirror", envvar="DEBIAN_MIRROR", metavar="URL", help="Debian mirror to fetch these two from.")
@run_cli
def main(debs: Path | None, mirror: str | None) -> None:
    """Afterwards builds, tests and the page need no network. Each file is compared with its SHA-256."""
    for name, pin in pins.PINS.items():
        click.echo(f"{name:18} {pin.package} {pin.version}: {pins.unpacked(name, debs, mirror)}")


if __name__ == "__main__":
    main()
