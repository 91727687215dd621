#!/bin/sh
set -e
# Arguments that are no program are node's.
if [ "${1#-}" != "${1}" ] || [ -z "$(command -v "${1}")" ]; then
  set -- node "$@"
fi
export STARTED_BY=entrypoint
exec "$@"
