"""Lets a torch for CUDA be imported on a machine without a GPU, and without the gigabytes of CUDA's own libraries.

The package index has most versions of torch for Linux as CUDA builds alone, which bring about 4 GB of libraries. They
are linked when torch is imported, though a CPU never calls them. This puts libraries of the same names beside torch's
own, whose functions all answer "there is no device". It needs gcc and binutils, and does nothing to a torch that can be
imported. Run it once, in an environment where torch was installed with --no-deps.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100
"""cudaErrorNoDevice, and CUDA_ERROR_NO_DEVICE."""
TEXTS = re.compile(r"Get(Last)?Error(String|Name)?$|GetStatus(String|Name)$|GetResultString$|nvrtcGetErrorString")


def main():
    """Writes the libraries, unless torch can be imported, and imports it."""
    if _imports():
        return
    spec = importlib.util.find_spec("torch")
    assert spec is not None, "torch is not installed"
    write_libraries(Path(str(spec.origin)).parent / "lib")
    subprocess.run([sys.executable, "-c", "import torch; assert not torch.cuda.is_available()"], check=True)


def write_libraries(folder):
    """Writes every library that those in the folder need and that this machine does not have."""
    written = folder / "empty_cuda_libraries.txt"
    if written.exists():  # for another version of torch
        for name in written.read_text().split():
            (folder / name).unlink(missing_ok=True)
    own = sorted(folder.glob("*.so*"))
    missing = {name for library in own for name in _needed(library)} - {library.name for library in own}
    missing = sorted(name for name in missing if _is_missing(name))
    versions, plain = defaultdict(dict), set()  # library -> version -> its functions
    for library in own:
        file_of = _files_of_versions(library)
        for symbol in _run("nm", "-D", "--undefined-only", library).split():
            name, _, version = symbol.partition("@")
            if file_of.get(version) in missing:
                versions[file_of[version]].setdefault(version, set()).add(name)
            elif not version and re.match(r"_?_?(cu|nv|nccl)\w*$", name):
                plain.add(name)
    written.write_text("\n".join(missing) + "\n")
    for i, library in enumerate(missing):
        _build(folder / library, versions[library], plain if not i else set())


def _build(path, versions, plain):
    names = sorted(plain.union(*versions.values()))
    script = "".join(f"{v} {{ global: {' '.join(f'{n};' for n in sorted(ns))} }};\n" for v, ns in versions.items())
    with tempfile.TemporaryDirectory() as folder:
        source, exports = Path(folder, "empty.c"), Path(folder, "exports")
        source.write_text("".join(map(_function, names)))
        exports.write_text(script)
        link = [f"-Wl,-soname,{path.name}", *([f"-Wl,--version-script={exports}"] if versions else [])]
        _run("gcc", "-shared", "-fPIC", "-w", *link, "-o", path, source)


def _function(name):
    if TEXTS.search(name) and not name.endswith("LastError"):
        return f'const char *{name}(void) {{ return "no CUDA here"; }}\n'
    return f"long {name}(void) {{ return {NO_DEVICE}; }}\n"


def _files_of_versions(library):
    found, file = {}, None
    for kind, name in re.findall(r"(File|Name): (\S+)", _run("readelf", "-V", library)):
        file = name if kind == "File" else file
        if kind == "Name" and file is not None:
            found[name] = file
    return found


def _needed(library):
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", _run("readelf", "-d", library))


def _is_missing(name):
    found = subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({name!r})"], capture_output=True)
    return found.returncode != 0


def _imports():
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def _run(*command):
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
