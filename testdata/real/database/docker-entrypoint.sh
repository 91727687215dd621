#!/usr/bin/env bash
set -Eeo pipefail
if [ "$(id -u)" = '0' ]; then
	find "$LEDGER_DATA" \! -user ledger -exec chown ledger '{}' +
	exec setpriv --reuid=ledger --regid=ledger --init-groups "$BASH_SOURCE" "$@"
fi
docker-ensure-initdb.sh
exec "$@"
