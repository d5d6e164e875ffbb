#!/usr/bin/env bash
# Installs what the tests need from the system, with apt, and only what is missing: a JDK >= 17 and Maven for
# the FHIR server, Chromium for the report and the Dagster UI, PostgreSQL's server programs, and Python's venv.
# Running it again does nothing.
set -euo pipefail

PYTHON=${PYTHON:-python3}
MINIMUM_JAVA=17

# java says: openjdk version "17.0.15" ..., javac says: javac 17.0.15
is_new_enough() {
  local said version='(version "|javac )([0-9]+)'
  said=$("$1" -version 2>&1) || return 1
  [[ $said =~ $version ]] && [ "${BASH_REMATCH[2]}" -ge "$MINIMUM_JAVA" ]
}

has_java() {
  # javac as well: a runtime without the compiler is what Maven's own package brings along.
  is_new_enough java && is_new_enough javac
}

has_venv() {
  # Debian ships venv without the ensurepip that it needs.
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null
}

has_postgres() {
  # Debian installs the server's programs beside the PATH.
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

known_to_apt() {
  # No answer, or "Candidate: (none)": a name without a package.
  [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

first_known_to_apt() {
  local package
  for package in "$@"; do
    if known_to_apt "$package"; then
      echo "$package"
      return
    fi
  done
  echo "scripts/system_packages.sh: apt knows none of: $*. Install one by hand and run make again." >&2
  return 1
}

package_for() {
  case $1 in
    java) first_known_to_apt openjdk-17-jdk-headless openjdk-21-jdk-headless openjdk-25-jdk-headless ;;
    maven | chromium | postgresql) first_known_to_apt "$1" ;;
    venv) first_known_to_apt "$(venv_of_this_python)" python3-venv ;;
  esac
}

venv_of_this_python() {
  "$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])' 2>/dev/null || echo python3-venv
}

mapfile -t wanted < <(missing)
[ "${#wanted[@]}" -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "The tests need from the system: ${wanted[*]}. This system has no apt, so install by hand" \
    "a JDK >= $MINIMUM_JAVA, Maven (mvn), Chromium (chromium), PostgreSQL's server (postgres) and Python's venv," \
    "as far as they are missing." >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
  echo "The tests need from the system: ${wanted[*]}. Run scripts/system_packages.sh as root, once;" \
    "there is no sudo here." >&2
  exit 1
fi

echo "Installing from the system's packages: ${wanted[*]}"
export DEBIAN_FRONTEND=noninteractive
as_root apt-get update -qq
packages=()
for need in "${wanted[@]}"; do
  package=$(package_for "$need")
  packages+=("$package")
done
# The tests start PostgreSQL servers of their own: the package must not make one and let it run, now or at boot. This
# setting is read at the package's first installation alone.
if ! has_postgres; then
  no_cluster=/etc/postgresql-common/createcluster.d/dicom-etl-tests.conf
  trap 'as_root rm -f "$no_cluster"' EXIT
  as_root mkdir -p "${no_cluster%/*}"
  echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
fi
# Through env: sudo drops the variable.
as_root env DEBIAN_FRONTEND="$DEBIAN_FRONTEND" \
  apt-get install --yes --no-install-recommends -q "${packages[@]}"

mapfile -t left < <(missing)
if [ "${#left[@]}" -gt 0 ]; then
  echo "Still missing after installing ${packages[*]}: ${left[*]}." \
    "A java older than $MINIMUM_JAVA may come first on the PATH (or PYTHON=$PYTHON is not the system's)." >&2
  exit 1
fi
