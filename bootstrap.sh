#!/bin/sh
# Prepares this checkout: bootstrap.sh run|demo|test [PYTHON [VENV]]
#   run    the project's own environment in VENV
#   demo   also what `make demo` needs from the system
#   test   also what the whole test suite needs, and the linters
# On Debian and Ubuntu root gets the packages installed; anybody else is told in one sentence what to install. When
# everything is there it is done in a moment.
set -eu

purpose=${1:-run} python=${2:-python3} venv=${3:-.venv}
cd "$(dirname "$0")"

# The one list of what the system has to have: program:Debian package.
run_tools='git:git'
demo_tools='docker-registry:docker-registry htpasswd:apache2-utils mksquashfs:squashfs-tools
    squashfuse:squashfuse fusermount3:fuse3'
test_tools='docker:docker.io dockerd:docker.io unsquashfs:squashfs-tools skopeo:skopeo umoci:umoci strace:strace
    mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs setfacl:acl tar2sqfs:squashfs-tools-ng slurmctld:slurm-wlm
    munged:munge ch-run:charliecloud-runtime shellcheck:shellcheck make:make tmux:tmux zsh:zsh fish:fish'

# A laptop whose Docker answers needs no daemon of ours.
[ -n "${DOCKER_HOST:-}" ] || [ -S /var/run/docker.sock ] || demo_tools="$demo_tools dockerd:docker.io docker:docker.io"
# dockerd on a kernel with AppArmor starts no container without its parser.
[ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" != Y ] || demo_tools="$demo_tools apparmor_parser:apparmor"

# Ubuntu has Chromium as a snap only; where it is there already (GitHub's runners) it is used.
grep -qs '^ID=ubuntu' /etc/os-release || test_tools="$test_tools chromium:chromium"

case $purpose in
    run) tools=$run_tools extras='' lock=requirements.txt ;;
    demo) tools="$run_tools $demo_tools" extras='' lock=requirements.txt ;;
    test) tools="$run_tools $demo_tools $test_tools" extras='[dev]' lock=tests/requirements.txt ;;
    *) echo "bootstrap: $purpose is none of run, demo, test" >&2; exit 2 ;;
esac

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "bootstrap: $python is missing or older than 3.10; name another: make PYTHON=python3.12" >&2
    exit 3
fi

missing=
add() { case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac; }
for tool in $tools; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${tool%%:*}" >/dev/null 2>&1 || add "${tool#*:}"
done
[ -x "$venv/bin/python" ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || add python3-venv

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
    # shellcheck disable=SC2086 # a list of packages
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/dev/null
}

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "bootstrap: installing$missing" >&2
        install_packages
    elif [ "$purpose" = test ] && [ -z "${CI:-}" ] && [ "$missing" = "${missing#*python3-venv}" ]; then
        echo "bootstrap: some tests will be skipped; for all of them: sudo apt-get install$missing" >&2
    else
        echo "bootstrap: make $purpose needs more of this system: sudo apt-get install$missing" >&2
        exit 3
    fi
fi

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
