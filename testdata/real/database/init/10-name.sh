printf "%s " "${LEDGER_DB:-ledger}" > "$LEDGER_DATA/base"
