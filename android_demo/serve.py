"""Serve the page from this machine, with all that it needs: python -m android_demo.serve."""

import http.server
import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from android_demo import pins, student
from android_demo.pins import HERE
from faces.cli import run_cli
from faces.errors import UserError

TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json", ".css": "text/css",
         ".html": "text/html; charset=utf-8", ".tflite": "application/octet-stream"}  # fmt: skip
_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)


class Handler(http.server.BaseHTTPRequestHandler):
    """GET of the files in `roots` alone: a path below a prefix, never above its folder."""

    server_version, sys_version = "bridgeface", ""

    def __init__(self, files: dict[str, Path], *args: Any) -> None:
        self.files = files
        super().__init__(*args)

    def do_GET(self) -> None:
        # Another site's name can be made to point at this machine (DNS rebinding); its page must not read ours.
        if not _HOST.fullmatch(self.headers.get("Host", "")):
            self.send_error(403, explain="Open this page as http://localhost, with the port of the server.")
            return
        file = self._file(self.path.split("?")[0].lstrip("/") or "index.html")
        if file is None:
            self.send_error(404)
            return
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", TYPES[file.suffix])
        self.send_header("Content-Length", str(len(body)))
        # Cross-origin isolation: precise clocks for the benchmark, and nothing of other hosts.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: str) -> Path | None:
        for prefix, place in self.files.items():
            if place.is_file() and path == prefix:
                return place
            if place.is_dir() and path.startswith(prefix):
                # Resolved, as a path may hold "..", or begin with a slash and so leave the folder at once.
                file = (place / path.removeprefix(prefix)).resolve()
                if file.is_relative_to(place.resolve()) and file.is_file() and file.suffix in TYPES:
                    return file
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a page that loads is no news."""


def files(artifact: Path) -> dict[str, Path]:
    """Path in the address (a folder's ends in a slash) to the file or folder; the page's own come last."""
    litert = pins.unpacked("litert-js") / "package"
    return {
        "models/student.tflite": artifact,
        "models/student.tflite.json": Path(f"{artifact}.json"),
        "models/face_finder.tflite": pins.finder_file(),
        "vendor/litert/wasm/": litert / "wasm",
        "vendor/litert/": litert / "dist",
        "vendor/litert-utils/": pins.unpacked("litert-js-utils") / "package" / "dist",
        "": HERE / "web",
    }


def server(artifact: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Bound to this machine alone; UserError where the port is taken."""
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, files(artifact)))
    except OSError as problem:
        raise UserError(f"port {port} cannot be used ({problem.strerror}); give another --port") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--run", "folder", type=click.Path(path_type=Path), help="The run whose student is used.")
@click.option("--precision", type=click.Choice(student.PRECISIONS), default="fp32", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@run_cli
def main(folder: Path | None, precision: str, port: int) -> None:
    """Serve the page on localhost until Ctrl-C."""
    with server(student.artifact(folder, precision), port) as serving:
        click.echo(f"open http://localhost:{serving.server_address[1]}/  (Ctrl-C ends)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            click.echo("ended")


if __name__ == "__main__":
    main()
