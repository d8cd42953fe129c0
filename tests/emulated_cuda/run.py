"""``python run.py PYTEST_ARGUMENTS``: pytest on the emulated device. ``guard.cpp`` has to be preloaded; see ``built``."""

import subprocess
import sys
from pathlib import Path

import torch


def built(folder: Path, compiler: str) -> Path:
    """``guard.cpp`` as a library for this PyTorch."""
    root, library = Path(torch.__file__).parent, Path(folder) / "guard.so"
    included = [f"-I{root / part}" for part in ("include", "include/torch/csrc/api/include")]
    linked = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    flags = [
        "-std=c++20",
        "-O0",
        "-shared",
        "-fPIC",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    source = Path(__file__).with_name("guard.cpp")
    subprocess.run(
        [compiler, *flags, str(source), "-o", str(library), *included, *linked], check=True, capture_output=True
    )
    return library


if __name__ == "__main__":
    import pytest
    from device import install

    with install():
        sys.exit(pytest.main(sys.argv[1:]))
