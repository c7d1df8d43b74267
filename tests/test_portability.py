"""Everything imports, and pure functions work, where the system lacks what only Unix or Linux has."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import REPOSITORY

WITHOUT = textwrap.dedent(
    '''
    """Take away what other systems do not have, then import and use facefix."""
    import builtins, importlib, os, pkgutil, shutil, signal, sys
    from pathlib import Path

    # What the libraries below us need of these they take first: only facefix must do without.
    import filelock, numpy, PIL.Image, requests, scipy, torch, diffusers, imagecodecs, typer, rich.progress, lxml.etree
    import insightface, onnxruntime, tqdm.auto, multiprocessing, subprocess, asyncio, pydantic_settings, platformdirs

    GONE = {"fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"}
    for name in [*GONE]:
        sys.modules.pop(name, None)
    real_import = builtins.__import__

    def importing(name, namespace=None, *rest):
        if name in GONE and str((namespace or {}).get("__name__", "")).startswith("facefix"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, namespace, *rest)

    builtins.__import__ = importing
    FUNCTIONS = ["sched_getaffinity", "sched_setaffinity", "fchmod", "chown", "fork", "getuid", "geteuid", "getpgid",
                 "killpg", "mkfifo", "nice", "statvfs", "sysconf", "uname", "getloadavg", "posix_fadvise", "O_CLOEXEC",
                 "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_SYNC", "O_DSYNC"]
    for name in FUNCTIONS:
        if hasattr(os, name):
            delattr(os, name)
    for name in [name for name in dir(signal) if name.startswith("SIG") and name[3] != "_"]:
        if name not in ("SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN"):  # what Windows has of those that matter here
            delattr(signal, name)
    real_open = os.open

    def opening(path, flags, mode=0o777, *, dir_fd=None):
        if os.path.isdir(path):
            raise PermissionError(13, "a folder cannot be opened here", str(path))
        return real_open(path, flags, mode)

    os.open = opening
    shutil._use_fd_functions = False

    import facefix

    for module in pkgutil.walk_packages(facefix.__path__, "facefix."):
        if module.name != "facefix.__main__":
            importlib.import_module(module.name)
    '''
)

PURE = textwrap.dedent(
    """
    from facefix.device import choose_device
    from facefix.evaluation.memory import PeakMemory, _peak_since_start
    from facefix.files import atomic
    from facefix.files.lock import exclusive
    from facefix.people.people_file import PeopleFile, PersonEntry, write_people_file
    from facefix.settings import Settings
    from facefix.stop import Stop, stopping
    from facefix.threads import usable_cores
    from facefix.folders import weights_dir

    assert usable_cores() == os.cpu_count() == Settings.load(environ={}).cpu_threads
    assert _peak_since_start() == 0
    assert weights_dir().is_absolute()
    place = Path(sys.argv[1])
    atomic.write_bytes(b"x", place / "a" / "b", like=os.stat(__file__))
    atomic.copy_bytes(place / "a" / "b", place / "c")
    with atomic.new_folder(place / "new") as new:
        (new / "y").write_text("y")
    assert (place / "new" / "y").read_text() == "y" and (place / "c").read_bytes() == b"x"
    with stopping(Stop()) as stop:
        assert not stop
    people = place / "people.toml"
    write_people_file(people, [PersonEntry("p1", "Ann", faces=("a.jpg#0",))])
    assert PeopleFile.read(people).persons[0].name == "Ann"
    numpy.random.seed(0)
    from facefix.photos.photo import read_photo, write_photo

    picture = numpy.random.randint(0, 255, (40, 60, 3), numpy.uint8)
    for name in ("a.jpg", "a.png", "a.tif", "a.bmp", "a.webp"):
        PIL.Image.fromarray(picture).save(place / name)
        write_photo(read_photo(place / name), [], place / "out" / name)
        assert read_photo(place / "out" / name).size == (60, 40)
    print("all is well")
    """
)


def test_imports_and_pure_functions_without_what_only_unix_has(tmp_path: Path) -> None:
    script = tmp_path / "elsewhere.py"
    script.write_text(WITHOUT + PURE)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("all is well")
