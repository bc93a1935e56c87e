#!/bin/sh
# Prepares this checkout: bootstrap.sh run|demo|test [PYTHON [VENV]]
#   run    the project's own environment in VENV
#   demo   also what `make demo` needs from the system
#   test   also what the whole test suite needs, and the linters
# As root on Debian and Ubuntu it installs the missing packages. For everybody else it says in one sentence what to
# install, and stops only if the purpose cannot be reached without it. When everything is there it returns at once.
set -eu

purpose=${1:-run} python=${2:-python3} venv=${3:-.venv}
cd "$(dirname "$0")"

# The one list of what the system has to have: program:Debian package.
run_tools='git:git'
# What the demo takes where it is: without it the registry is a container, and the mount by FUSE is left out.
demo_tools='docker-registry:docker-registry htpasswd:apache2-utils squashfuse:squashfuse fusermount3:fuse3'
test_tools='mksquashfs:squashfs-tools unsquashfs:squashfs-tools skopeo:skopeo umoci:umoci strace:strace
    mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs setfacl:acl tar2sqfs:squashfs-tools-ng slurmctld:slurm-wlm
    munged:munge ch-run:charliecloud-runtime shellcheck:shellcheck make:make tmux:tmux zsh:zsh fish:fish
    mpirun:openmpi-bin mpirun:libpmix-dev' # Slurm loads PMIx by a name that only its development package has

# The engine's packages. The command `docker` is in docker-cli where the distribution has that package (Debian 13),
# else in docker.io itself (Debian 12, Ubuntu).
engine_tools='dockerd:docker.io docker:docker-cli|docker.io'
# dockerd on a kernel with AppArmor starts no container without its parser.
if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then
    engine_tools="$engine_tools apparmor_parser:apparmor"
fi

# A laptop whose Docker answers needs no daemon of ours.
has_engine() {
    [ -z "${DOCKER_HOST:-}${DOCKER_CONTEXT:-}" ] || return 0
    for socket in /var/run/docker.sock "${XDG_RUNTIME_DIR:-/nowhere}/docker.sock" "$HOME/.docker/run/docker.sock"; do
        if [ -S "$socket" ] && [ -w "$socket" ]; then return 0; fi
    done
    # Another context than the default one, as Docker Desktop and Colima set it up.
    grep -qs '"currentContext"' "${DOCKER_CONFIG:-$HOME/.docker}/config.json"
}

# Ubuntu has Chromium as a snap only; where it is there already (GitHub's runners) it is used.
grep -qs '^ID=ubuntu' /etc/os-release || test_tools="$test_tools chromium:chromium"

case $purpose in
    run) required=$run_tools optional='' extras='' lock=requirements.txt ;;
    demo) required=$run_tools optional=$demo_tools extras='' lock=requirements.txt
        has_engine || required="$required $engine_tools" ;;
    test) required=$run_tools optional="$demo_tools $engine_tools $test_tools"
        extras='[dev]' lock=tests/requirements.txt ;;
    *) echo "bootstrap: $purpose is not a purpose: run, demo or test" >&2; exit 2 ;;
esac

check_python() {
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "bootstrap: $python is missing or older than 3.10; name another: make PYTHON=python3.12" >&2
        exit 3
    fi
}

# An old Python is reported before anything is installed. A bare Debian has none: its own one is then installed too.
if command -v "$python" >/dev/null 2>&1; then check_python; fi
[ "$python" != python3 ] || required="python3:python3 $required"

# missing_of TOOLS: the packages of those programs that are not there, each once.
missing_of() {
    found=
    for tool in $1; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${tool%%:*}" >/dev/null 2>&1 && continue
        package=$(available "${tool#*:}")
        case " $found " in *" $package "*) ;; *) found="$found $package" ;; esac
    done
    printf '%s' "$found"
}

# available A|B: A where this distribution has it, else B.
available() {
    if [ -n "$(apt-cache show --no-all-versions "${1%%|*}" 2>/dev/null)" ]; then
        echo "${1%%|*}"
    else
        echo "${1#*|}"
    fi
}

find_missing() {
    missing=$(missing_of "$required")
    [ -x "$venv/bin/python" ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    useful=$(missing_of "$optional")
}

# Packages must not leave daemons running: a service that a package wants to start is refused while we install.
install_packages() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    find_missing # which packages there are is known only now
    echo "bootstrap: installing$missing$useful" >&2
    # What a package says while it is set up, such as that its service was not started, is shown if it fails.
    # shellcheck disable=SC2086 # lists of packages
    if ! problems=$(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends \
        $missing $useful 2>&1 >/dev/null); then
        printf '%s\n' "$problems" >&2
        exit 3
    fi
}

find_missing
if [ -n "$missing$useful" ]; then
    how='sudo apt-get install'
    command -v apt-get >/dev/null 2>&1 || how="install what Debian calls"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        install_packages
    elif [ -n "$missing" ] || { [ "$purpose" = test ] && [ -n "${CI:-}" ]; }; then
        echo "bootstrap: make $purpose needs more of this system: $how$missing$useful" >&2
        exit 3
    elif [ "$purpose" = test ]; then
        echo "bootstrap: some tests will be skipped; for all of them: $how$useful" >&2
    fi
fi

check_python

# One stamp a set of dependencies, older than pyproject.toml and the lock when these have changed.
stamp=$venv/.installed$extras
if [ ! -e "$stamp" ] || [ -n "$(find pyproject.toml "$lock" -newer "$stamp")" ]; then
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    echo "bootstrap: installing the Python packages of sqshpipe$extras into $venv" >&2
    # --no-compile: most of what the tests bring is imported by few of them; the rest is compiled below
    set -- "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps
    # Every file that comes has a hash in the lock, what builds the project itself included.
    "$@" --require-hashes -r "$lock"
    "$@" --no-build-isolation -e .
    # Whoever may not write here, or has PYTHONDONTWRITEBYTECODE, would compile all that a command loads at every
    # start, which makes it take three times as long.
    "$venv/bin/python" -m compileall -qq -j 0 -x '/(moto|mypy|pip|pygments|hypothesis)/' pipeline "$venv"/lib || :
    touch "$venv/.installed" "$stamp"
fi
