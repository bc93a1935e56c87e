#!/bin/sh
# Makes the project's own environment: bootstrap.sh PYTHON VENV. Debian and Ubuntu ship python3 without its venv module.
set -eu
python=$1 venv=$2
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
    else
        echo "bootstrap: $python has no venv module; install it first: sudo apt-get install python3-venv" >&2
        exit 3
    fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
