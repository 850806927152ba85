#!/bin/sh
# Build the control plane that the Kubernetes integration tests start: kube-apiserver, kube-controller-manager and
# kube-scheduler, from their published Go modules; and fetch the definitions of further kinds (crds.txt) from the modules
# that publish them. etcd comes from the distribution (Debian: etcd-server).
#
#   tests/k8s/setup.sh            builds what is missing; says in one line each what cannot be had
#   tests/k8s/setup.sh --where    only prints the folder
#
# The first build took 9 minutes on two cores (15 minutes of processor time, 2 GB of memory) and left 3.4 GB in Go's
# caches and 270 MB in the folder; the definitions are 30 s and 8 MB more. When all is there, a call returns at once. Two
# calls at the same time wait for one another. Environment: TIDEMARK_CACHE (default ~/.cache/tidemark), GOMAXPROCS
# (default 2).
set -eu

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
VERSION=$(sed -n 's|^[[:space:]]*k8s.io/kubernetes v\([0-9.]*\).*|\1|p' "$HERE/controlplane/go.mod")
BIN="${TIDEMARK_CACHE:-$HOME/.cache/tidemark}/k8s-$VERSION"
CRDS="${TIDEMARK_CACHE:-$HOME/.cache/tidemark}/k8s-crds"

if [ "${1:-}" = --where ]; then
    echo "$BIN"
    exit 0
fi

failed=0
lacking() {                         # one line per thing that cannot be had; the rest goes on
    echo "kubernetes: $1" >&2
    failed=1
}

command -v etcd >/dev/null || [ -x "$BIN/etcd" ] || lacking "no etcd on PATH; on Debian: apt-get install etcd-server"
command -v openssl >/dev/null || lacking "no openssl on PATH; on Debian: apt-get install openssl"

if [ ! -e "$BIN/.done" ]; then
    if ! command -v go >/dev/null; then
        lacking "no Go toolchain on PATH; the control plane $VERSION needs Go 1.26 or later to build"
        exit 1
    fi
    mkdir -p "$BIN"
    exec 9>"$BIN/.lock"
    flock 9                         # a second caller waits here, then finds .done
    if [ ! -e "$BIN/.done" ]; then
        export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="-trimpath -mod=readonly" GOMAXPROCS="${GOMAXPROCS:-2}"
        stamp=k8s.io/component-base/version
        minor=${VERSION#*.}
        log="$BIN/build.log"
        echo "kubernetes: building $VERSION into $BIN (about 10 minutes the first time; output in $log)"
        if (cd "$HERE/controlplane" && nice -n 15 go build -p "$GOMAXPROCS" -o "$BIN/" \
                -ldflags "-s -w -X $stamp.gitVersion=v$VERSION -X $stamp.gitMajor=${VERSION%%.*} -X $stamp.gitMinor=${minor%%.*}" \
                k8s.io/kubernetes/cmd/kube-apiserver \
                k8s.io/kubernetes/cmd/kube-controller-manager \
                k8s.io/kubernetes/cmd/kube-scheduler) >"$log" 2>&1; then
            touch "$BIN/.done"
        else
            lacking "the build of $VERSION failed: $(tail -n 1 "$log") (all of it: $log)"
        fi
    fi
fi

# --- The kinds of others, as their modules publish them: one file each, its name with the version in front
mkdir -p "$CRDS"
grep -v '^#' "$HERE/crds.txt" | {
    lacks=0
    while read -r module version file; do
        copy="$CRDS/$version-$(basename "$file")"
        [ -e "$copy" ] && continue
        folder=$(cd / && GOTOOLCHAIN=local GOFLAGS=-mod=mod go mod download -json "$module@$version" 2>/dev/null |
            sed -n 's|^[[:space:]]*"Dir": "\(.*\)",*$|\1|p')
        if [ -n "$folder" ] && [ -e "$folder/$file" ]; then
            cp "$folder/$file" "$copy.part" && chmod u+w "$copy.part" && mv "$copy.part" "$copy"
        else
            lacking "$module $version cannot be fetched: $(basename "$file" .yaml) is not tested"
            lacks=1
        fi
    done
    exit "$lacks"
} || failed=1
[ "$failed" = 0 ] && echo "kubernetes: ready in $BIN"
exit "$failed"
