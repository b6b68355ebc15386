# shellcheck shell=bash
# Sourced by train.sh, test.sh and .ci/run: makes .venv ready, once, and names it.
#
#   $root    the checkout
#   $venv    its virtual environment, with everything installed that training and the tests need
#
# What is there already is kept: a stamp in .venv remembers what was installed, so that a second run starts at
# once, and a run that was interrupted is taken up again. $CASTIRON_PYTHON chooses the Python to begin with.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"

case "$(uname -sm)" in
    "Linux x86_64") tensorflow="tensorflow-cpu==2.21.0" ;;
    *) tensorflow="tensorflow==2.21.0" ;;
esac
# torch is asked for by its exact version: where a CPU build of it is at hand, pip takes that one.
requirements=("torch==2.13.0" "$tensorflow" -e "$root[dev,docs]")

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf '%s\n' "$@" >&2
    exit 2
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${CASTIRON_PYTHON:+"$CASTIRON_PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if command -v "$candidate" >/dev/null && is_supported "$candidate"; then
            command -v "$candidate"
            return
        elif [ "$candidate" = "${CASTIRON_PYTHON:-}" ]; then
            fail "CASTIRON_PYTHON=$candidate is no Python 3.11, 3.12 or 3.13."
        fi
    done
    fail "castiron needs Python 3.11, 3.12 or 3.13, and none was found on the PATH." \
        "Install one (Debian, Ubuntu: apt install python3 python3-venv; or https://www.python.org/downloads/)," \
        "or name it: CASTIRON_PYTHON=/path/to/python bash $0"
}

# What the environment must have been made of, as one line.
wanted_stamp() {
    {
        cat -- "$root/pyproject.toml" "$root/constraints.txt"
        printf '%s\n' "$("$venv/bin/python" -V 2>&1)" "${requirements[@]}"
    } | cksum
}

is_ready() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/.castiron-stamp" ] &&
        [ "$(cat -- "$venv/.castiron-stamp")" = "$(wanted_stamp)" ]
}

make_ready() {
    local python
    if [ -e "$venv" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        is_supported "$venv/bin/python" ||
            fail "$venv holds $("$venv/bin/python" -V 2>&1); castiron needs 3.11 to 3.13." "Remove it and try again."
    else
        python="$(find_python)" || exit
        say "Making a virtual environment in $venv ($("$python" -V 2>&1))"
        # --clear: one that was begun and not finished is begun anew.
        "$python" -m venv --clear "$venv" || fail "" \
            "$python cannot make a virtual environment." \
            "Its venv module is missing (Debian, Ubuntu: apt install python3-venv), or the folder cannot be written."
    fi
    say "Installing castiron and what it needs: a few minutes, once"
    rm -f -- "$venv/.castiron-stamp"
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -c "$root/constraints.txt" "${requirements[@]}" ||
        fail "" "The installation failed; what pip said stands above. Mended, the same command goes on from here."
    wanted_stamp >"$venv/.castiron-stamp.new"
    mv -- "$venv/.castiron-stamp.new" "$venv/.castiron-stamp"
    say "Ready."
}

if ! is_ready; then
    # Two of these scripts at once would install over each other; where there is flock, the second one waits.
    if command -v flock >/dev/null; then
        exec 9>"$root/.venv.lock"
        flock 9
        is_ready || make_ready
        exec 9>&-
    else
        make_ready
    fi
fi
