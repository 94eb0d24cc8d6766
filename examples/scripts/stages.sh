# For scripts of several commands, which source it: `denserl` then shows each command before it runs, leaves out one that has finished as
# it stands there, on the same files, and lets one that was stopped go on from its newest checkpoint.

# The environment in use, else the one that `make` creates.
command -v denserl > /dev/null || PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin:$PATH"

denserl() {
    echo "+ denserl $*" >&2
    case $(python3 -m denserl.cli.standing "$@") in
        finished) echo "  has finished before" >&2 ;;
        stopped) command denserl "$@" --resume ;;
        new) command denserl "$@" ;;
        *) return 1 ;;
    esac
}
