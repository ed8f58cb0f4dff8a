"""``tzn app``: a folder with a page that localizes recordings in the browser, by onnxruntime-web, without a server of ours.

Everything it needs lies in the folder as scripts, so that the page also works when it is opened from a disk, where browsers
load nothing else. onnxruntime-web (MIT licence, Microsoft) comes from npm when the folder is made; it is no part of tzn.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tzn.config_loading import config_from_dict
from tzn.errors import ConfigError, DataError
from tzn.files import atomic_write, cache_folder
from tzn.models import ActionFormerConfig
from tzn.models.exported_file import read_description
from tzn.view.page import filled
from tzn.visualization.style import PALETTE

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
MODULE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SCRIPTS = ("decode.js", "recording.js", "app.js")
STYLES = ("app.css",)
LICENCE = """{package} {version}, in runtime.js, is the work of Microsoft Corporation, under the MIT License:

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


class Runtime(NamedTuple):
    """What is taken from onnxruntime-web."""

    version: str
    module: bytes
    wasm: bytes


def write_app(model: Path, out: Path, *, runtime: Path | None = None) -> list[Path]:
    """Write the folder; what else lies in it stays.

    Args:
        model: ``.onnx`` of ``tzn export``; its class names, signal and settings are in the file.
        out: the folder.
        runtime: folder or ``.tgz`` of the npm package onnxruntime-web; None: the one in tzn's cache, else from npm.

    Returns:
        The files, the page first.

    Raises:
        CheckpointError: no exported model. ConfigError: settings that the page does not run. DataError: no onnxruntime-web.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: a file, expected a folder")
    description = read_description(model)
    _check(description, model)
    found = _runtime(runtime)
    title = f"tzn: {model.stem}"
    data = {
        "title": title, "classes": description["classes"], "labelIds": [None] * len(description["classes"]),
        "palette": PALETTE, "predicted": True, "threshold": description.get("score_threshold"), "bestScore": 1.0,
        "annotated": False, "recordings": [], "app": {"name": model.name, "description": description},
    }  # fmt: skip
    page = filled(
        data, {}, title=title, more_scripts=SCRIPTS, more_styles=STYLES,
        script_sources=" 'self' file: blob: 'wasm-unsafe-eval'",
    )  # fmt: skip
    parts = {
        name: base64.b64encode(content).decode() for name, content in (("module", found.module), ("wasm", found.wasm))
    }
    contents = {
        "index.html": page,
        "network.js": f'window.TZN_NETWORK = "{base64.b64encode(model.read_bytes()).decode()}";\n',
        "runtime.js": f"window.TZN_RUNTIME = {json.dumps({'version': found.version, **parts})};\n",
        "LICENSE.onnxruntime-web.txt": LICENCE.format(package=PACKAGE, version=found.version),
    }
    paths = []
    for name, text in contents.items():
        with atomic_write(out / name) as file:
            file.write(text)
        paths.append(out / name)
    return paths


def _check(description: dict[str, Any], model: Path) -> None:
    """Settings that the page has no code for."""
    config = config_from_dict(description["config"])
    if config.inference.mode == "pair":
        raise ConfigError(
            f"{model}: inference.mode = 'pair': the page decodes 'refine' and 'anchor'; export with another mode"
        )
    if config.data.fixed_length is not None:
        raise ConfigError(f"{model}: data.fixed_length resizes whole recordings, which the page does not do")
    if config.data.pool > 1 or config.data.log_channels:
        raise ConfigError(
            f"{model}: data.pool and data.log_channels change features before the network, which the page does not do"
        )
    if config.data.single_class:
        raise ConfigError(
            f"{model}: data.single_class: its classes come from a classifier of whole videos; the page has none"
        )
    if isinstance(config.model, ActionFormerConfig) and "padding" not in description:
        raise ConfigError(f"{model}: written by an earlier tzn; export it again")


def _runtime(given: Path | None) -> Runtime:
    if given is not None and given.is_dir():
        return _from_folder(given)
    archive = given or runtime_archive()
    try:
        with tarfile.open(archive) as package:
            files = [_member(package, name, archive) for name in ("package.json", f"dist/{MODULE}", f"dist/{WASM}")]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{archive}: not the archive of an npm package ({error})") from None
    return Runtime(_version(files[0], archive), files[1], files[2])


def _member(package: tarfile.TarFile, name: str, archive: Path) -> bytes:
    try:
        content = package.extractfile(f"package/{name}")
    except KeyError:
        content = None
    if content is None:
        raise DataError(f"{archive}: holds no {name}; expected the npm package {PACKAGE} {VERSION}")
    return content.read()


def _from_folder(folder: Path) -> Runtime:
    """From a folder such as ``node_modules/onnxruntime-web``."""
    try:
        files = [(folder / name).read_bytes() for name in ("package.json", f"dist/{MODULE}", f"dist/{WASM}")]
    except OSError as error:
        raise DataError(
            f"--runtime {folder}: {error.filename}: {error.strerror}; expected the npm package {PACKAGE}"
        ) from None
    return Runtime(_version(files[0], folder), files[1], files[2])


def _version(text: bytes, place: Path) -> str:
    try:
        facts = json.loads(text)
        if facts["name"] == PACKAGE:
            return str(facts["version"])
    except (ValueError, KeyError, TypeError):
        facts = {}
    raise DataError(f"{place}: its package.json does not describe {PACKAGE}")


def runtime_archive() -> Path:
    """The package's archive in tzn's cache, fetched by npm if it is not there."""
    archive = cache_folder() / f"{PACKAGE}-{VERSION}.tgz"
    if archive.is_file():
        return archive
    npm = shutil.which("npm")
    elsewhere = f"or fetch it elsewhere (npm pack {PACKAGE}@{VERSION}) and give the file with --runtime"
    if npm is None:
        raise DataError(f"{PACKAGE} {VERSION} comes from npm, which is not installed: install Node.js, {elsewhere}")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        made = Path(folder) / archive.name
        if done.returncode or not made.is_file():
            reason = " ".join((done.stderr or done.stdout).split())[:200] or "no reason given"
            raise DataError(
                f"npm could not fetch {PACKAGE} {VERSION} ({reason}); are you offline? Try again, {elsewhere}"
            )
        with atomic_write(archive, "wb") as file, made.open("rb") as source:
            shutil.copyfileobj(source, file)
    return archive
