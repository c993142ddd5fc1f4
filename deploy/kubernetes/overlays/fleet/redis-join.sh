#!/bin/sh
# Make a cluster of the nodes named, once they all answer, unless they are one; run it as often as you like.
set -eu
port=${REDIS_PORT:-6379}
first=$1
for node in "$@"; do
  until [ "$(redis-cli -h "${node%:*}" -p "${node#*:}" ping 2>&1)" = PONG ]; do sleep 1; done
done
if [ "$(redis-cli -h "${first%:*}" -p "${first#*:}" cluster info | tr -d '\r' | sed -n 's/^cluster_known_nodes://p')" -gt 1 ]; then
  echo "a cluster already"
  exit 0
fi
# By address, since that is what the nodes tell each other.
addresses=
for node in "$@"; do
  addresses="$addresses $(getent hosts "${node%:*}" | awk '{ print $1; exit }'):${node#*:}"
done
# shellcheck disable=SC2086 # several words, on purpose
redis-cli --cluster create $addresses --cluster-yes
