#!/usr/bin/env bash
set -Eeuo pipefail
chmod 00700 "$LEDGER_DATA" || :
[ ! -e "$LEDGER_DATA/base" ] || exit 0
for f in /docker-entrypoint-initdb.d/*; do
	case "$f" in
		*.sh) . "$f" ;;
		*.sql) cat "$f" >> "$LEDGER_DATA/base" ;;
		*) echo "ignoring $f" ;;
	esac
done
