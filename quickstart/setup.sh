#!/usr/bin/env bash
# Make a virtual environment with the pinned packages: setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is $("$python" --version 2>&1); dit_scale needs Python >= 3.11: make PYTHON=python3.11 …" >&2
    exit 2
}
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear "$venv" || {
        echo "Python cannot make a virtual environment here; install it: apt-get install python3-venv" >&2
        exit 2
    }
fi
echo "Installing packages into $venv (about 7 GB; half a minute where they are cached, minutes where not) …"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" -c constraints.txt -e '.[dev]'
