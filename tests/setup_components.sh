#!/bin/sh
# Fetch the real programs that the component tests start: Apache Kafka (Maven jars), Prometheus and Alertmanager
# (Debian packages), Chromium, and, where it was built before or is required, the Kubernetes control plane.
#
# Safe to repeat; what is there already is left alone. Each thing that cannot be had is one line on stderr that says
# what is therefore not tested; the exit status is 0 all the same, because tests skip aloud (and fail where
# TIDEMARK_REQUIRE names the component). Environment: TIDEMARK_CACHE (default ~/.cache/tidemark), TIDEMARK_REQUIRE.
set -eu

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
CACHE="${TIDEMARK_CACHE:-$HOME/.cache/tidemark}"
required=" $(echo "${TIDEMARK_REQUIRE:-}" | tr ',' ' ') "

lacking() { echo "setup: $1" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
requires() { case "$required" in *" all "*|*" $1 "*) return 0 ;; *) return 1 ;; esac; }

# debian PROGRAM PACKAGE...: install the packages where the program is missing and we may. RUNLEVEL=1 keeps the
# packages from starting their services, which would listen on every interface.
updated=
debian() {
    program=$1; shift
    if has "$program"; then return 0; fi
    if [ "$(id -u)" != 0 ] || ! has apt-get; then return 1; fi
    if [ -z "$updated" ]; then apt-get update -qq >/dev/null 2>&1 || true; updated=yes; fi
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 || true
    has "$program"
}

# --- Prometheus and Alertmanager
debian prometheus prometheus || lacking "no prometheus (Debian: apt-get install prometheus): scraping and rules are not tested"
debian prometheus-alertmanager prometheus-alertmanager ||
    lacking "no prometheus-alertmanager (Debian: apt-get install prometheus-alertmanager): alert routing is not tested"

# --- Chromium and its driver, for the built-in page
debian chromium chromium chromium-driver || lacking "no chromium (Debian: apt-get install chromium chromium-driver): \
the built-in page is not seen in a browser"
debian chromedriver chromium-driver || lacking "no chromedriver (Debian: apt-get install chromium-driver): \
the built-in page is not seen in a browser"

# --- the command of the back-up that docs/operations.md names
debian sqlite3 sqlite3 || lacking "no sqlite3 (Debian: apt-get install sqlite3): its copy of a running service's state is not tested"

# --- Grafana's types, which the test itself fetches into the cache
debian npm nodejs npm || lacking "no npm (Debian: apt-get install nodejs npm): dashboards are not checked against Grafana's types"

# --- Kafka
version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$HERE/kafka/pom.xml")
jars="$CACHE/kafka-$version"
debian openssl openssl || lacking "no openssl: nothing on the real Kafka broker is tested"
debian java openjdk-17-jre-headless || lacking "no java (17 or later): nothing on the real Kafka broker is tested"
if [ ! -e "$jars/.done" ]; then
    if debian mvn maven; then
        mkdir -p "$jars"
        log="$jars/fetch.log"
        if mvn -q -B -Dstyle.color=never -f "$HERE/kafka/pom.xml" \
                org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
                -DincludeScope=runtime -DoutputDirectory="$jars" >"$log" 2>&1; then
            touch "$jars/.done"
        else
            lacking "the jars of Kafka $version could not be fetched: $(grep -m 1 ERROR "$log" || tail -n 1 "$log") \
(all of it: $log): nothing on the real Kafka broker is tested"
        fi
    else
        lacking "no mvn to fetch Kafka $version with (Debian: apt-get install maven): nothing on the real Kafka broker is tested"
    fi
fi

# --- Kubernetes: 10-25 minutes of building the first time, so only where asked for, or where it is built already
k8s="$HERE/k8s/setup.sh"
if [ -e "$k8s" ]; then
    if requires kubernetes || [ -e "$(sh "$k8s" --where)/.done" ]; then
        debian etcd etcd-server || true                       # setup.sh itself says what lacks
        sh "$k8s" || lacking "the Kubernetes control plane is not whole (see above): the kubernetes launcher is not tested on what lacks"
    else
        lacking "the Kubernetes control plane is not built (TIDEMARK_REQUIRE=kubernetes builds it): the kubernetes launcher is \
not tested on a real API server"
    fi
fi
exit 0
