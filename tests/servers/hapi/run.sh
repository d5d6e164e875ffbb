#!/bin/sh
# Starts the built server in the foreground: ./run.sh -Dport=8095 -Dstrict=true ...
# HEAP sets the largest heap. LONG_LIVED=true leaves compilers and collector to the JVM. CDS=dump writes a class archive when the server ends, which later starts map.
cd "$(dirname "$0")" || exit 1
archive=
if [ "${CDS:-}" = dump ]; then
  archive=-XX:ArchiveClassesAtExit=target/app.jsa.new
elif [ -f target/app.jsa ]; then
  archive=-XX:SharedArchiveFile=target/app.jsa
fi
# C1 alone and the serial collector: a test's server lives for a minute or two on a shared machine.
choice='-XX:+UseSerialGC -XX:TieredStopAtLevel=1'
if [ "${LONG_LIVED:-}" = true ]; then choice=; fi
# Without -UsePerfData the JVM leaves a file in the system's temporary folder.
exec java -Xmx"${HEAP:-1500m}" $choice -XX:-UsePerfData \
  ${archive:+"$archive"} '-Xlog:cds*=error' -Dorg.slf4j.simpleLogger.defaultLogLevel=error "$@" \
  -cp "target/fhir-test-server.jar:$(cat target/cp.txt)" FhirServer
