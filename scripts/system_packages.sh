#!/usr/bin/env bash
# Installs with apt the system packages that the tests need and that are missing: a JDK >= 17 and Maven for the FHIR
# server, Chromium for the report and the Dagster UI, the server programs of PostgreSQL, and venv of Python.
# Running it again does nothing.
set -euo pipefail

PYTHON=${PYTHON:-python3}
MINIMUM_JAVA=17

# java prints: openjdk version "17.0.15" ..., javac prints: javac 17.0.15
is_new_enough() {
  local output version='(version "|javac )([0-9]+)'
  output=$("$1" -version 2>&1) || return 1
  [[ $output =~ $version ]] && [ "${BASH_REMATCH[2]}" -ge "$MINIMUM_JAVA" ]
}

has_java() {
  # javac as well: the Maven package installs only a runtime, without the compiler.
  is_new_enough java && is_new_enough javac
}

has_venv() {
  # Debian's Python has venv without ensurepip, which it needs.
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null
}

has_postgres() {
  # Debian installs the server programs outside of the PATH.
  compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || command -v postgres >/dev/null
}

missing() {
  has_java || echo "java"
  command -v mvn >/dev/null || echo "maven"
  command -v chromium >/dev/null || echo "chromium"
  has_postgres || echo "postgresql"
  has_venv || echo "venv"
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

is_in_apt() {
  # No answer, or "Candidate: (none)": a name without a package.
  [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

first_in_apt() {
  local package
  for package in "$@"; do
    if is_in_apt "$package"; then
      echo "$package"
      return
    fi
  done
  echo "scripts/system_packages.sh: apt has none of: $*. Install one manually and run make again." >&2
  return 1
}

package_for() {
  case $1 in
    java) first_in_apt openjdk-17-jdk-headless openjdk-21-jdk-headless openjdk-25-jdk-headless ;;
    maven | chromium | postgresql) first_in_apt "$1" ;;
    venv) first_in_apt "$(venv_of_this_python)" python3-venv ;;
  esac
}

venv_of_this_python() {
  "$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])' 2>/dev/null || echo python3-venv
}

mapfile -t wanted < <(missing)
[ "${#wanted[@]}" -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "The tests need these system packages: ${wanted[*]}. This system has no apt, so install manually" \
    "a JDK >= $MINIMUM_JAVA, Maven (mvn), Chromium (chromium), the PostgreSQL server (postgres) and Python venv," \
    "as far as they are missing." >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
  echo "The tests need these system packages: ${wanted[*]}. Run scripts/system_packages.sh once as root;" \
    "there is no sudo here." >&2
  exit 1
fi

echo "Installing system packages for: ${wanted[*]}"
export DEBIAN_FRONTEND=noninteractive
as_root apt-get update -qq
packages=()
for need in "${wanted[@]}"; do
  package=$(package_for "$need")
  packages+=("$package")
done
# The tests start their own PostgreSQL servers: the package must not create one and start it, now or at boot. This
# setting is only read at the first installation of the package.
if ! has_postgres; then
  no_cluster=/etc/postgresql-common/createcluster.d/dicom-etl-tests.conf
  trap 'as_root rm -f "$no_cluster"' EXIT
  as_root mkdir -p "${no_cluster%/*}"
  echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
fi
# Through env: sudo drops the variable.
as_root env DEBIAN_FRONTEND="$DEBIAN_FRONTEND" \
  apt-get install --yes --no-install-recommends -q "${packages[@]}"

mapfile -t still_missing < <(missing)
if [ "${#still_missing[@]}" -gt 0 ]; then
  echo "Still missing after installing ${packages[*]}: ${still_missing[*]}." \
    "A java older than $MINIMUM_JAVA may come first on the PATH (or PYTHON=$PYTHON is not the Python of the system)." >&2
  exit 1
fi
