#!/bin/sh
# The wheels that a CUDA machine without a network needs beside its own torch, transformers and accelerate, to install
# this checkout and run benchmarks/gpu.py: 14 MB, as bitsandbytes keeps one CUDA library of many.
#
#     benchmarks/carry.sh FOLDER [PYTHON [CUDA]]    # of that machine; 3.12 and 130 unless told
#
# There, in a copy of this checkout:
#
#     pip install --no-index --no-deps FOLDER/*.whl
#     pip install --no-index --no-deps --no-build-isolation -e .
set -eu
folder=$1 python=${2:-3.12} cuda=${3:-130}
mkdir -p "$folder"
platforms=
for glibc in 39 35 34 31 28 27 24 17; do platforms="$platforms --platform manylinux_2_${glibc}_x86_64"; done
# shellcheck disable=SC2086
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
	--python-version "$python" $platforms --platform manylinux2014_x86_64 --dest "$folder" \
	'diffusers>=0.42' 'bitsandbytes>=0.46.1' pydantic==2.14.3 pydantic_core==2.50.4 annotated_types typing_inspection \
	platformdirs importlib_metadata tomli_w pluggy hatchling trove_classifiers pathspec
python3 - "$folder" "$cuda" <<'EOF'
"""Leave out bitsandbytes' libraries for other versions of CUDA."""
import sys, zipfile
from pathlib import Path

folder, cuda = sys.argv[1:]
(wheel,) = Path(folder).glob("bitsandbytes-*.whl")
small = wheel.with_suffix(".part")
def kept(name):
    return not name.endswith(".so") or name.endswith(("_cpu.so", f"_cuda{cuda}.so"))
with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
    if not any(name.endswith(f"_cuda{cuda}.so") for name in old.namelist()):
        sys.exit(f"{wheel.name} has no library for CUDA {cuda}")
    for item in old.infolist():
        if item.filename.endswith(".dist-info/RECORD"):
            rows = old.read(item).decode().splitlines(keepends=True)
            new.writestr(item, "".join(row for row in rows if kept(row.split(",")[0])))
        elif kept(item.filename):
            new.writestr(item, old.read(item))
small.replace(wheel)
EOF
du -ch "$folder"/*.whl
