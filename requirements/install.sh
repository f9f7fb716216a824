#!/bin/sh
# install.sh [PROFILE [WHEEL]]: installs a profile (`default`, `dev`) into .venv (or $VENV) from its hashed lock
# file, then this checkout, editable, or the wheel. `ort-openvino`, whose build of ONNX Runtime cannot share an
# environment with the other's, goes into .venv-ort-openvino; `clients`, with nothing of ours, into .venv-clients.
# `make setup` runs it.
#
# pip, which every Python brings, installs the pinned uv; uv installs the rest. uv reads no pip configuration, so
# the mirrors and certificates that pip was told of are handed on to it; hashes make any mirror safe.
set -eu
cd "$(dirname "$0")/.."
profile=${1:-default}
wheel=${2:-}
case $profile in
  clients | ort-openvino) venv=${VENV:-.venv-$profile} ;;
  *) venv=${VENV:-.venv} ;;
esac

fail() {
  echo "setup: $1" >&2
  echo "hint: $2" >&2
  exit 1
}

find_python() {
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed; none of these is: ${PYTHON:-python3 python3.11 … python3.14}" \
    "install one, or name it: make setup PYTHON=/path/to/python3"
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  "$python" -m venv --clear "$venv" ||
    fail "$python cannot make a virtual environment" "on Debian and Ubuntu: apt install python3-venv"
fi

pip_settings=$("$venv/bin/python" -m pip config list 2>/dev/null | sed 's/\\n/ /g')
pip_setting() { # the environment's value is listed first
  printf '%s\n' "$pip_settings" | sed -nE "s/^(:env:|install|global)\.$1='(.*)'\$/\2/p" | head -n 1
}
export_unless_set() { # NAME VALUE
  if [ -n "$2" ] && eval "[ -z \"\${$1:-}\" ]"; then export "$1=$2"; fi
}

export_unless_set PIP_CERT "${SSL_CERT_FILE:-}"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/build.txt

# as pip does, every index is asked; but of one version uv takes the files of the first index that has it, and a mirror
# may have a package without the library that others' files of it contain: so the main index comes first
index=$(pip_setting index-url)
[ -n "$index" ] || index=$("$venv/bin/python" -c 'from pip._internal.models.index import PyPI; print(PyPI.simple_url)')
export_unless_set UV_DEFAULT_INDEX "$index"
export_unless_set UV_INDEX "$UV_DEFAULT_INDEX $(pip_setting extra-index-url)"
export_unless_set UV_INDEX_STRATEGY unsafe-best-match
export_unless_set SSL_CERT_FILE "$(pip_setting cert)"
export_unless_set UV_SYSTEM_CERTS true
find_links=
for link in $(pip_setting find-links); do # pip passes over a missing folder, uv stops at it
  case $link in
    *://*) ;;
    *) [ -e "$link" ] || continue ;;
  esac
  find_links=${find_links:+$find_links,}$link
done
export_unless_set UV_FIND_LINKS "$find_links"

uv() { "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@"; }
# a lock is complete; without its one override (no-onnxruntime.txt) the dependencies of a package may say otherwise
uv --compile-bytecode --require-hashes --no-deps -r "requirements/$profile.txt"
if [ "$profile" = clients ]; then exit; fi
if [ -n "$wheel" ]; then uv --compile-bytecode --no-deps "$wheel"; else uv --no-deps --no-build-isolation --editable .; fi
